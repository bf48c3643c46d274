"""Types of options in words: `float | None` with `gt=0` is `number > 0, or null`."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from simflow_plugin.options import is_subclass
from simflow_plugin.registry import Part

SCALARS = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "anything"}
PLURALS = {"integer": "integers", "number": "numbers", "text": "texts", "true or false": "booleans"}
BOUNDS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))


def members(annotation: Any) -> list[Any]:
    """Return the types that a value may have, without None; of `Annotated` what stands inside."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for part in get_args(annotation) for one in members(part)]
    return [] if annotation is type(None) else [annotation]


def allows_none(annotation: Any) -> bool:
    """Return whether null is a value of this type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return any(allows_none(part) for part in get_args(annotation))
    return annotation is type(None)


def literals(annotation: Any) -> list[str]:
    """Return the values of the `Literal` types in an annotation, at any depth, as they are written in YAML."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in literals(part)]


def bounds(metadata: Iterable[Any]) -> str:
    """Return the range that constraints leave, as `>= 0, < 1`; '' without any."""
    flat = [
        one for entry in metadata for one in (entry.metadata if isinstance(entry, FieldInfo) else [entry])
    ]
    found = [
        f"{sign} {_number(getattr(entry, name))}"
        for kind, name, sign in BOUNDS
        for entry in flat
        if isinstance(entry, kind)
    ]
    found += [f"at least {entry.min_length} long" for entry in flat if isinstance(entry, MinLen)]
    found += [f"at most {entry.max_length} long" for entry in flat if isinstance(entry, MaxLen)]
    return ", ".join(found)


def type_in_words(annotation: Any) -> str:
    """Return a type as a user of YAML would say it; constraints inside of lists are part of it."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [type_in_words(part) for part in get_args(annotation) if part is not type(None)]
        words = " or ".join(dict.fromkeys(parts))
        return f"{words}, or null" if allows_none(annotation) else words
    if get_origin(annotation) is Annotated:
        inside, *metadata = get_args(annotation)
        return " ".join(filter(None, [type_in_words(inside), bounds(metadata)]))
    if get_origin(annotation) is Literal:
        return "name"
    if get_origin(annotation) in (list, tuple):
        return _list_in_words([part for part in get_args(annotation) if part is not Ellipsis], annotation)
    if get_origin(annotation) is dict or annotation is dict:
        return "mapping"
    if is_subclass(annotation, Part):
        return "name, or mapping with a name and options"
    if is_subclass(annotation, BaseModel):
        return getattr(annotation, "written_as", "mapping")
    return SCALARS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _list_in_words(elements: list[Any], annotation: Any) -> str:
    """Return `list of 2 numbers >= 0`, `list of integers`, ..."""
    words = [type_in_words(element) for element in elements]
    is_fixed = get_origin(annotation) is tuple and Ellipsis not in get_args(annotation)
    if not words:
        return "list"
    noun, _, range_ = words[0].partition(" ") if words[0] not in PLURALS else (words[0], "", "")
    plural = " ".join(filter(None, [PLURALS.get(noun, f"{noun}s"), range_]))
    if len(set(words)) > 1:
        return f"list of {', '.join(words)}"
    return f"list of {len(words)} {plural}" if is_fixed else f"list of {plural}"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
