"""Help of every command: types in words, none of the names of Python or of the parser, and limits in the same words."""

import re

import pytest
from typer.main import get_command

from simflow_plugin.cli.app import app
from tests.commands import simflow, succeed

GROUP = get_command(app)
COMMANDS = [
    *([name] for name in GROUP.commands if name != "config"),
    *(["config", name] for name in GROUP.commands["config"].commands),
]
TECHNICAL = re.compile(r"<\w+>|list\[|range\]|\[x[<>]|<=x|\bBOOLEAN\b|\bOptional\b")


@pytest.fixture(autouse=True)
def _wide_and_plain(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_no_command_shows_types_of_the_parser(words):
    assert not [line for line in succeed(*words, "--help").splitlines() if TECHNICAL.search(line)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", "--set +KEY=VALUE, repeatable"),
        ("study", "--seed +INTEGER >= 0, repeatable"),
        ("evaluate", r"--autoguidance +RUN@STEP"),
        ("bench", r"--dtype +float32\|bfloat16\|float16"),
    ],
)
def test_types_are_words(command, words):
    assert re.search(words, succeed(command, "--help"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["study", "sigma", "--seed", "-1"], "found -1, expected INTEGER >= 0"),
        (["sample", "run", "--guidance", "nan"], "found nan, expected NUMBER >= 0"),
    ],
)
def test_a_number_out_of_its_limits_is_refused_in_the_same_words(words, expected):
    status, output = simflow(*words)
    assert status == 2
    assert expected in output
