"""The benchmark runs, at small sizes, and refuses to compare what is not equal."""

import pytest

from benchmarks.criterion import check_losses, main
from benchmarks.criterion_cases import Measurement
from runtime.errors import UserError


@pytest.mark.slow
def test_every_part_of_it_on_a_cpu(tmp_path) -> None:
    out = tmp_path / "criterion.md"
    main(
        ["--cases", "B", "256-bf16", "step-256", "--shrink", "32", "--rounds", "1", "--threads", "1", "--out", str(out)]
    )
    page = out.read_text()
    assert page.count("\n| B: ") == 5
    assert page.count("\n| 256-bf16: ") == 5
    assert "The local criterion takes" in page
    assert "only shows that the benchmark works" in page


def test_another_loss_is_an_error() -> None:
    found = {("A", "definitions"): Measurement(1, 1, 40.0), ("A", "reference"): Measurement(1, 1, 40.1)}
    with pytest.raises(UserError, match=r"reference gives a loss of 40\.1, and definitions one of 40"):
        check_losses(found)
