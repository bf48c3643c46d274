"""Progress where there is no terminal: lines with rate and remaining time, none for short work."""

import io

import pytest

from simflow_plugin.progress_bar import ProgressLines, count_progress


class Clock:
    """Seconds as the test sets them."""

    now = 0.0

    def __call__(self):
        return self.now


def lines_of(steps, total, done=0):
    """Return the lines printed when `steps` is a list of (seconds, count)."""
    clock, output = Clock(), io.StringIO()
    lines = ProgressLines("features", total, done, output, clock)
    for clock.now, count in steps:
        lines.advance(count)
    return output.getvalue().splitlines()


@pytest.mark.parametrize(
    ("steps", "total", "done", "expected"),
    [
        ([(20.0, 400)], 10_000, 0, ["features 400/10000  20.0/s  8 min left"]),
        ([(20.0, 200)], 1000, 600, ["features 800/1000  10.0/s  20 s left"]),
        ([(20.0, 50), (21.0, 50)], 100, 0, ["features 50/100  2.5/s  20 s left", "features 100/100  4.8/s"]),
        ([(1.0, 50), (2.0, 50)], 100, 0, []),
    ],
    ids=["long", "begun before", "last line", "short"],
)
def test_a_line_is_count_rate_and_remaining_time_of_long_work(steps, total, done, expected):
    assert lines_of(steps, total, done) == expected


def test_lines_keep_their_distance():
    assert len(lines_of([(float(second), 1) for second in range(1, 61)], 100)) == 4


@pytest.mark.parametrize("total", [0, 3])
def test_count_progress_advances_without_a_terminal(total, capsys):
    with count_progress("counting", total) as advance:
        advance(total)
    assert capsys.readouterr().err == ""
