"""Groups of options: a command with them is one with their fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from simflow_plugin.option_groups import grouped


@dataclass(frozen=True)
class Size:
    """Of a picture."""

    width: Annotated[int, typer.Option(min=1, help="Pixels.")]
    unit: Annotated[str, typer.Option("--in")] = "pixels"


@dataclass(frozen=True)
class Place:
    """In a file."""

    out: Annotated[Path | None, typer.Option()] = None


@pytest.fixture
def seen() -> list[object]:
    return []


@pytest.fixture
def app(seen: list[object]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @grouped
    def draw(name: Annotated[str, typer.Argument()], *, size: Size, place: Place) -> None:
        """Draw."""
        seen.extend([name, size, place])

    return app


def test_fields_of_groups_are_options_of_the_command(app: typer.Typer, seen: list[object]) -> None:
    result = CliRunner().invoke(app, ["dot", "--width", "3", "--in", "points", "--out", "a.png"])
    assert result.exit_code == 0, result.output
    assert seen == ["dot", Size(3, "points"), Place(Path("a.png"))]


def test_defaults_and_limits_are_those_of_the_fields(app: typer.Typer, seen: list[object]) -> None:
    assert CliRunner().invoke(app, ["dot", "--width", "0"]).exit_code == 2
    assert CliRunner().invoke(app, ["dot"]).exit_code == 2
    assert CliRunner().invoke(app, ["dot", "--width", "2"]).exit_code == 0
    assert seen == ["dot", Size(2), Place()]


def test_command_is_called_in_python_with_the_fields_that_differ() -> None:
    seen = []
    command = grouped(_keep(seen))
    command("dot", width=2)
    assert seen == [("dot", Size(2), Place())]


def _keep(seen: list[object]):
    def draw(name: str, *, size: Size, place: Place) -> None:
        seen.append((name, size, place))

    return draw
