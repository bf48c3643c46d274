"""Validation of raw values by pydantic, with errors that name where a key came from and the nearest known one.

One mistake is one line. Where a value may be of several types pydantic reports every one of them, under names of its
own: only what the user wrote is kept, and what comes nearest to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from simflow_plugin.config.option_facts import literals
from simflow_plugin.config.yaml_source import KeyPath, YamlSource
from simflow_plugin.errors import ConfigError
from simflow_plugin.options import OF_FIELD, did_you_mean, nested_options

MAPPING_TYPES = ("model_type", "model_attributes_type", "dataclass_type", "dict_type", "mapping_type")
SHORT = 60
"""Characters of a mapping up to which it is shown in full."""
OTHER_TYPE = ("_type", "_parsing")
"""Ends of pydantic's error types that mean: not this type at all (as opposed to: this type, out of range)."""


def validate(model: type[BaseModel], values: Any, source: YamlSource, prefix: KeyPath) -> Any:
    """Return `values` as a `model`.

    Args:
        model: options of a part, or a configuration.
        values: raw, as read.
        source: where each key came from.
        prefix: path of `values` in the source.
    Raises:
        ConfigError: one line per mistake: file, line, key, what was found, what was expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for group in _by_value(error, values):
            lines += [_explain(mistake, model, source, prefix) for mistake in _nearest(group)]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


@dataclass(frozen=True)
class Mistake:
    """One error of pydantic.

    Args:
        path: keys that the user wrote, to the value that is wrong.
        union: length of the part of `path` that leads to a value of several possible types; None without one.
        member: pydantic's name of the type that was tried there; the `kind` where that tells the types apart.
        kind: pydantic's type of the error.
        message: what was expected.
        found: the value.
    """

    path: KeyPath
    union: int | None
    member: str | None
    kind: str
    message: str
    found: Any


def _read(item: Any, values: Any) -> Mistake:
    """Take from pydantic's location what is in `values`: the rest are names of union members and validators."""
    path, union, member, current = [], None, None, values
    for position, key in enumerate(item["loc"]):
        is_absent = item["type"] == "missing" and position == len(item["loc"]) - 1
        is_key = isinstance(current, dict) and key in current
        is_index = isinstance(current, (list, tuple)) and isinstance(key, int) and key < len(current)
        if is_key or is_index or is_absent:
            path.append(str(key))
            current = None if is_absent else current[key]
        elif union is None:
            union, member = len(path), str(key)
    found = item["input"]
    if item["type"] == OF_FIELD:
        path.append(item["ctx"]["field"])
        found = found[path[-1]]
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in MAPPING_TYPES:
        message = "Input should be a mapping"
    elif item["type"].endswith("_parsing"):
        message = message.partition(", unable to parse")[0]
    return Mistake(tuple(path), union, member, item["type"], message, found)


def _by_value(error: ValidationError, values: Any) -> list[list[Mistake]]:
    """Group the errors by the value they are about: those of the members of one union belong together."""
    groups: dict[Any, list[Mistake]] = {}
    for number, item in enumerate(error.errors()):
        mistake = _read(item, values)
        key = number if mistake.union is None else mistake.path[: mistake.union]
        groups.setdefault(key, []).append(mistake)
    return list(groups.values())


def _nearest(group: list[Mistake]) -> list[Mistake]:
    """Return the mistakes of the union members that come nearest to what was written.

    A member that got inside the value comes first, then one of the right type; otherwise all of them in one line.
    """
    inside = [m for m in group if m.union is not None and len(m.path) > m.union]
    right_type = [m for m in group if not m.kind.endswith(OTHER_TYPE)]
    if len(group) == 1 or inside or right_type:
        return inside or right_type or group
    wanted = [m.message.removeprefix("Input should be ") for m in group]
    return [replace(group[0], message="Input should be " + " or ".join(dict.fromkeys(wanted)))]


def _explain(mistake: Mistake, model: type[BaseModel], source: YamlSource, prefix: KeyPath) -> str:
    """Return 'file:line: key: what is wrong. What to do.'"""
    path = (*prefix, *mistake.path)
    where, key = source.place(path), ".".join(path)
    if mistake.kind == "extra_forbidden":
        known = _known_keys(model, mistake.path[:-1], mistake.member)
        return f"{where}: {key}: unknown key.{did_you_mean(path[-1], known)}"
    if mistake.kind == "missing":
        return f"{where}: {key}: required, but not given."
    return f"{where}: {key}: {mistake.message.rstrip('.')}{_found(mistake)}."


def _found(mistake: Mistake) -> str:
    """Return '; found VALUE'; of a large mapping the values that the message names."""
    if mistake.found is None:
        return "; found null"
    if not isinstance(mistake.found, dict) or len(repr(mistake.found)) <= SHORT:
        return f"; found {mistake.found!r}"
    words = set(re.findall(r"\w+", mistake.message))
    named = [f"{key}: {value!r}" for key, value in mistake.found.items() if str(key) in words]
    return f"; found {', '.join(named)}" if named else ""


def _known_keys(model: type[BaseModel], path: KeyPath, member: str | None) -> list[str]:
    """Return the keys of the nested model at `path`; of several, the one whose `kind` is `member`."""
    current = model
    for key in path:
        if key in current.model_fields:
            nested = list(nested_options(current.model_fields[key].annotation))
            chosen = [one for one in nested if member in literals(_kind_of(one))]
            current = next(iter([*chosen, *nested]), current)
    return list(current.model_fields)


def _kind_of(options: type[BaseModel]) -> Any:
    return options.model_fields["kind"].annotation if "kind" in options.model_fields else None
