"""Options of a command as dataclasses: each field of a group is an option, as if the command's signature had it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command for typer with one option for each field of the dataclasses among its arguments.

    Args:
        command: its own options and arguments come first, then those of each group; no name may occur twice.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name not in groups
    ]
    for group in groups.values():
        of_fields = get_type_hints(group, include_extras=True)
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


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
