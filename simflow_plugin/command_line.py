"""Functions as commands, of `simflow` or programs of their own, whose help and messages are for users.

Types in `--help` are words: INTEGER >= 2, PATH, KEY=VALUE repeatable; none where a flag takes no value.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from simflow_plugin.exits import exit_on_full_disk, exit_on_user_error
from simflow_plugin.option_groups import grouped
from simflow_plugin.streams import surviving_readers

NAMES: dict[Any, str] = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH", bool: ""}


class ReadableCommand(TyperCommand):
    """A command with types in words, whose user's mistakes are one message and an exit status each."""

    def get_params(self, ctx: Any) -> Any:
        return without_technical_types(super().get_params(ctx))

    def main(self, *args: Any, **settings: Any) -> Any:
        with exit_on_full_disk(), surviving_readers():  # pages of help are printed here, before `invoke`
            return super().main(*args, **settings)

    def invoke(self, ctx: Any) -> Any:
        with exit_on_user_error():
            return super().invoke(ctx)


class ReadableGroup(TyperGroup):
    """A group of commands, with types in words."""

    def get_params(self, ctx: Any) -> Any:
        return without_technical_types(super().get_params(ctx))

    def main(self, *args: Any, **settings: Any) -> Any:
        with exit_on_full_disk(), surviving_readers():
            return super().main(*args, **settings)


def add_command(app: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Add a function to a group as a command, `readable`; None is its own name, with dashes."""
    app.command(name or function.__name__.replace("_", "-"), cls=ReadableCommand)(readable(function))


def run_command(function: Callable[..., None]) -> None:
    """Run a function as a program, `python -m MODULE`, with the arguments of this process, and end the process."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    add_command(app, function)
    app()


def without_technical_types(parameters: Any) -> Any:
    """Return parameters that show no type of their own: what `readable` did not name needs none (--help)."""
    for parameter in parameters:
        if parameter.metavar is None:
            parameter.metavar = ""
        if parameter.param_type_name == "argument" and hasattr(parameter, "display_type_rich"):
            parameter.display_type_rich = lambda ctx: None  # its name stands beside it already
    return parameters


def readable(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer: groups of options laid out, types and limits named in words, in messages too."""
    command = grouped(function)
    for name, hint in command.__annotations__.items():
        if get_origin(hint) is not Annotated:
            continue
        kind, *found = get_args(hint)
        for info in found:
            if isinstance(info, OptionInfo):
                _describe_option(info, kind)
            elif isinstance(info, ArgumentInfo) and info.metavar is None:
                info.metavar = name.upper()
    return command


def _describe_option(info: OptionInfo, kind: Any) -> None:
    kind, is_list = _element(kind)
    word = info.metavar if info.metavar is not None else type_name(kind)
    if info.min is not None or info.max is not None:
        low, high = info.min, info.max
        limits = [f"{sign} {limit:g}" for sign, limit in ((">=", low), ("<=", high)) if limit is not None]
        word = f"{word} {' and '.join(limits)}"
        info.callback, info.min, info.max = _within(low, high, word), None, None
    if is_list and not word.endswith(", repeatable"):
        word += ", repeatable"
    info.metavar = word


def type_name(kind: Any) -> str:
    """Return the word for a type: TEXT, INTEGER, NUMBER, PATH, the choices themselves, or nothing for a flag."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return NAMES.get(kind, "VALUE")


def _element(kind: Any) -> tuple[Any, bool]:
    """Return the type without None, of a list that of its elements, and whether it is a list."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (member for member in get_args(kind) if member is not type(None))
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _within(low: float | None, high: float | None, expected: str) -> Callable[[Any], Any]:
    """Return a check of a value, or of each of several, against limits."""

    def check(value: Any) -> Any:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if one is not None and not (
                (low is None or one >= low) and (high is None or one <= high)
            ):  # also not a number
                raise typer.BadParameter(f"found {one:g}, expected {expected}")
        return value

    return check
