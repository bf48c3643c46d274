"""Options of a command as dataclasses: each field of a group is an option, as if the command's signature had it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer with one option for each field of the dataclasses among its arguments.

    Args:
        command: its own options and arguments come first, then those of each group; no name may occur twice.
    """
    hints = _hints(command)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in groups
    ]
    for group in groups.values():
        of_fields = _hints(group)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(field),
                annotation=of_fields[field.name],
            )
            for field in fields(group)
        ]

    @wraps(command)
    def flat(*arguments: Any, **given: Any) -> None:
        built = {}
        for name, group in groups.items():
            own = {field.name for field in fields(group)} & given.keys()
            built[name] = group(**{key: given.pop(key) for key in own})
        command(*arguments, **given, **built)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _hints(thing: Any) -> dict[str, Any]:
    return {name: as_written(hint) for name, hint in get_type_hints(thing, include_extras=True).items()}


def as_written(hint: Any) -> Any:
    """Return `Annotated[...]` of the `Optional[Annotated[...]]` that Python 3.10 makes where the default is None."""
    parts = [part for part in get_args(hint) if part is not NoneType]
    is_wrapped = get_origin(hint) is Union and len(parts) == 1 and get_origin(parts[0]) is Annotated
    return parts[0] if is_wrapped else hint


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
