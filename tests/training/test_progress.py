"""Training without a terminal prints lines: step, seconds, losses, rate and remaining time."""

import pytest

from simflow_plugin.training import progress
from simflow_plugin.training.progress import TrainingProgress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets: `clock[0] = 10.0`."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_tells_the_rate_and_what_is_left(clock, capsys):
    shown = TrainingProgress(total=300, done=0, enabled=True)
    clock[0] = 50.0
    shown.show({"step": 100, "seconds": 50.0, "nll": 1.25, "images_per_second": 64.0})
    line = capsys.readouterr().err.strip()
    assert line == "step 100/300  50 s  nll 1.25  images_per_second 64  1:40 left"


def test_steps_before_a_resume_do_not_count_in_the_rate(clock, capsys):
    shown = TrainingProgress(total=300, done=200, enabled=True)
    clock[0] = 25.0
    shown.show({"step": 250, "seconds": 125.0})
    assert capsys.readouterr().err.strip().endswith("0:25 left")


def test_other_processes_print_nothing(capsys):
    TrainingProgress(total=3, done=0, enabled=False).show({"step": 1, "seconds": 1.0})
    assert capsys.readouterr().err == ""
