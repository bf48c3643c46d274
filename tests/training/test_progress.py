"""What a user sees of training: start, time to expect, one line of 80 columns."""

import io

import pytest
from rich.console import Console

from simflow_plugin.training.progress import TrainingProgress

ROW = {
    "step": 10,
    "seconds": 3.0,
    "l2": 14.4,
    "lpips": 0.25,
    "nll": 1.1,
    "kl": 3.0,
    "images_per_second": 57.31,
}


def shown(total, done=0, steps=0, is_terminal=False, seconds_per_step=0.5, row=None):
    """Return what is printed by some steps that each take as long by the clock."""
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=is_terminal, color_system=None)
    now = [0.0]
    progress = TrainingProgress(total, done, True, console=console, clock=lambda: now[0])
    with progress:
        for _ in range(steps):
            now[0] += seconds_per_step
            progress.advance()
        if row is not None:
            progress.show(row)
    return output.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_duration_is_stated_after_ten_steps(is_terminal):
    assert "time:" not in shown(1210, steps=9, is_terminal=is_terminal)
    assert "0.5 s a step, about 10 min for the other 1,200 steps" in shown(
        1210, steps=10, is_terminal=is_terminal
    )


def test_duration_on_resume_is_of_the_steps_that_are_left():
    assert "about 45 s for the other 90 steps" in shown(200, done=100, steps=10)


@pytest.mark.parametrize(
    ("done", "words"), [(0, "from scratch"), (40, "goes on after step 40 of 100"), (100, "finished: all 100")]
)
def test_start_says_where_the_run_begins(done, words):
    assert words in shown(100, done=done)


def test_bar_keeps_step_and_remaining_time_within_80_columns():
    frames = shown(1_500_000, done=1_234_000, steps=12, is_terminal=True, row=ROW).splitlines()
    bars = [line for line in frames if "/1,500,000" in line and "step" in line and "start" not in line]
    assert bars
    for line in bars:
        assert len(line.split("\r")[-1].replace("\x1b[2K", "").replace("\x1b[1A", "").rstrip()) <= 80
    assert any("1,234,012/1,500,000" in line and ":" in line and "l2 14.4" in line for line in bars)


def test_lines_without_a_terminal_hold_the_losses():
    assert "step 10/20  3 s  l2 14.4  lpips 0.25  nll 1.1" in shown(20, row=ROW)
