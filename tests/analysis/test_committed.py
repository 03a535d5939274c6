"""The check of all reports fails for each thing that it is for, and the command that mends them mends them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from analysis import committed
from analysis import report as report_module
from analysis.__main__ import main
from analysis.figures import scores
from analysis.report import SOURCE, STALE, write_report
from runtime.errors import UserError
from sweeps.graph import Graph


@pytest.fixture
def check(fill: Callable[..., Graph], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int | None]:
    """`--check` of one report, whose study lies in the working directory."""
    monkeypatch.setattr(report_module, "FIGURES", (scores.PLOT,))
    monkeypatch.setattr(committed, "STUDIES", folder)
    (folder / "study.yaml").rename(folder / "fake.yaml")
    Path("study.yaml").symlink_to("fake.yaml")
    fill(lambda a, s: 10.0 if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a)
    write_report("fake.yaml")
    return lambda: main(["--check"])


def change_a_setting() -> None:
    Path("linear.yaml").write_text("noise: 0.5\n")


def test_a_current_report_passes(check: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> None:
    Path("README.md").write_text("![it](reports/fake/tradeoff.png)")
    assert check() == 0
    assert capsys.readouterr().out == "ok    fake: current\n"


def test_a_report_of_other_settings_has_to_say_so(
    check: Callable[[], int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    change_a_setting()
    assert check() == 1
    assert "WRONG fake: has other settings than this checkout and does not say so: linear `noise` 0 → 0.5" in (
        capsys.readouterr().out
    )
    main(["--refresh"])
    assert STALE in Path("reports/fake/README.md").read_text()
    assert check() == 0
    assert (
        "ok    fake: says that its settings are not this checkout's: linear `noise` 0 → 0.5" in capsys.readouterr().out
    )


def test_a_report_that_says_so_no_longer_has_to(check: Callable[[], int | None]) -> None:
    change_a_setting()
    main(["--refresh"])
    Path("linear.yaml").write_text("noise: 0.0\n")
    assert check() == 1


@pytest.mark.parametrize("file", ["README.md", "index.html", "table.md", "table.tex", "table.csv"])
def test_a_file_that_the_table_does_not_make(
    check: Callable[[], int | None], capsys: pytest.CaptureFixture[str], file: str
) -> None:
    path = Path("reports/fake") / file
    path.write_text(path.read_text().replace("50", "51"))
    assert check() == 1
    assert f"WRONG fake: {file} " in capsys.readouterr().out
    path.unlink()
    assert check() == 1


def test_a_picture_of_other_results(check: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> None:
    pictures = Path("reports/fake/pictures")
    pictures.mkdir()
    texts = PngInfo()
    texts.add_text(SOURCE, "0123456789:done:0123456789")
    Image.new("RGB", (4, 4)).save(pictures / "maps.png", pnginfo=texts)
    main(["--refresh"])
    capsys.readouterr()
    assert check() == 1
    assert "WRONG fake: `pictures/maps.png` shows other results than results.csv" in capsys.readouterr().out


def test_a_figure_that_is_missing_from_the_page(check: Callable[[], int | None]) -> None:
    for file in Path("reports/fake").glob("scores.*"):
        file.unlink()
    assert check() == 1


def test_the_page_that_quotes_a_report_of_other_settings_says_so(
    check: Callable[[], int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    change_a_setting()
    main(["--refresh"])
    Path("README.md").write_text("![it](reports/fake/tradeoff.png)\n\nOf [it](reports/fake/README.md): 50 %.")
    assert check() == 1
    assert "WRONG README.md: quotes reports/fake and does not say" in capsys.readouterr().out
    page = f"![it](reports/fake/tradeoff.png)\n\n[It](reports/fake/README.md) ({STALE.lower()}):\n50 %."
    Path("README.md").write_text(page.replace("other settings", "other\nsettings"))
    assert check() == 0
    Path("linear.yaml").write_text("noise: 0.0\n")
    main(["--refresh"])
    assert check() == 1
    assert "WRONG README.md: quotes reports/fake and says without reason that" in capsys.readouterr().out
    change_a_setting()
    main(["--refresh"])
    Path("README.md").write_text(f"{page.split('(made')[0]}\n\nElsewhere: {STALE}.")
    assert check() == 1


def test_a_report_without_its_study(check: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> None:
    Path("fake.yaml").unlink()
    assert check() == 1
    assert "WRONG fake: cannot be compared with its study" in capsys.readouterr().out


def test_a_folder_without_reports_is_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match="there is no report in reports"):
        main(["--check"])


def test_a_report_that_git_ignores_is_left_alone(check: Callable[[], int | None], folder: Path) -> None:
    shutil.copytree("reports/fake", "reports/smoke")
    assert check() == 1  # there is no study of that name
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    Path(".gitignore").write_text("/reports/smoke/\n", encoding="utf-8")
    assert check() == 0
