"""Help of every command: types in words, none of the names of Python or of the parser, and limits in the same words."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from simflow_plugin.cli.app import app

GROUP = get_command(app)
COMMANDS = [
    *([name] for name in GROUP.commands if name != "config"),
    *(["config", name] for name in GROUP.commands["config"].commands),
]
TECHNICAL = re.compile(r"<\w+>|list\[|range\]|\[x[<>]|<=x|\bBOOLEAN\b|\bOptional\b")


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_no_command_shows_types_of_the_parser(words):
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0

    assert not [line for line in result.output.splitlines() if TECHNICAL.search(line)]


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
    output = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert re.search(words, output)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["study", "sigma", "--seed", "-1"], "found -1, expected INTEGER >= 0"),
        (["sample", "run", "--guidance", "nan"], "found nan, expected NUMBER >= 0"),
    ],
)
def test_a_number_out_of_its_limits_is_refused_in_the_same_words(words, expected):
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert expected in result.output
