"""Groups of options: a command with them is one with their fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import pytest
import typer
from typer.testing import CliRunner

from simflow_plugin.option_groups import as_written, grouped


@dataclass(frozen=True)
class Size:
    """Of a picture."""

    width: Annotated[int, typer.Option(min=1, help="Pixels.")]
    unit: Annotated[str, typer.Option("--in")] = "pixels"


@dataclass(frozen=True)
class Place:
    """In a file."""

    out: Annotated[Path | None, typer.Option()] = None


def draw(name: Annotated[str, typer.Argument()], *, size: Size, place: Place) -> None:
    """Draw."""
    SEEN[:] = [name, size, place]


SEEN: list[object] = []
APP = typer.Typer()
APP.command()(grouped(draw))


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        (["--width", "3", "--in", "points", "--out", "a.png"], [Size(3, "points"), Place(Path("a.png"))]),
        (["--width", "2"], [Size(2), Place()]),
    ],
)
def test_fields_of_groups_are_options_of_the_command(words: list[str], groups: list[object]) -> None:
    result = CliRunner().invoke(APP, ["dot", *words])
    assert result.exit_code == 0, result.output
    assert ["dot", *groups] == SEEN


@pytest.mark.parametrize("words", [[], ["--width", "0"]], ids=["missing", "too small"])
def test_limits_are_those_of_the_fields(words: list[str]) -> None:
    assert CliRunner().invoke(APP, ["dot", *words]).exit_code == 2


def test_command_is_called_in_python_with_the_fields_that_differ() -> None:
    grouped(draw)("dot", width=2)
    assert ["dot", Size(2), Place()] == SEEN


def test_what_an_older_python_makes_of_a_default_of_none_is_taken_back() -> None:
    hint = Annotated[Path | None, "metadata"]
    assert as_written(Optional[hint]) is hint  # noqa: UP045
    assert as_written(hint) is hint
    assert as_written(Path | None) == (Path | None)
