import pytest

from runtime.progress import describe_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (86399, "23 h 59 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_days() -> None:
    assert describe_seconds(3 * 86400 + 4 * 3600 + 59 * 60) == "3 d 4 h"
