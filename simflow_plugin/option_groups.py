"""Options of a command as dataclasses: each field of a group is an option, as if the command's signature had it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from typing import Any


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer with one option for each field of the dataclasses among its arguments.

    Args:
        command: its own options and arguments come first, then those of each group; no name may occur twice.
    """
    own = _parameters(command)
    groups = {name: _parameters(one.annotation) for name, one in own.items() if is_dataclass(one.annotation)}
    flat_parameters = [one for name, one in own.items() if name not in groups]
    flat_parameters += [one for fields in groups.values() for one in fields.values()]

    @wraps(command)
    def flat(*arguments: Any, **given: Any) -> None:
        built = {}
        for name, fields in groups.items():
            built[name] = own[name].annotation(
                **{key: given.pop(key) for key in fields.keys() & given.keys()}
            )
        command(*arguments, **given, **built)

    flat.__signature__ = inspect.Signature(flat_parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {one.name: one.annotation for one in flat_parameters}
    return flat


def _parameters(thing: Any) -> dict[str, inspect.Parameter]:
    # Not get_type_hints: Python 3.10 wraps what has a default of None in an Optional of its own.
    found = inspect.signature(thing, eval_str=True).parameters
    return {name: one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, one in found.items()}
