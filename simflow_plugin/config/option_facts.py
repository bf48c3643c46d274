"""Facts about a declared option in words, read from its field: type, range, default and purpose.

`float | None` with `gt=0` is `number > 0, or null`; defaults are YAML.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from simflow_plugin.options import is_subclass, nested_options
from simflow_plugin.registry import Part

REQUIRED = "(required)"
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")
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


def element_types(annotation: Any) -> list[type[BaseModel]]:
    """Return the classes of options in an annotation, also as elements of a list."""
    found = (nested_options(one) for one in members(annotation) if get_origin(one) is not dict)
    return list(dict.fromkeys(chain.from_iterable(found)))


def default_of(options: type[BaseModel], name: str, field: FieldInfo) -> str:
    """Return the value that an option has where nothing is written, as one line of YAML."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        try:  # what other defaults fill in, as a flow's size its width
            value = getattr(options.model_validate({}), name)
        except ValidationError:
            return REQUIRED
    return as_yaml(value)


def as_yaml(value: Any) -> str:
    """Return a value of a configuration as one line of YAML."""
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def description_of(field: FieldInfo) -> str:
    """Return the description of a field, or of the section that it holds."""
    sections = (summary_of(kind) for kind in element_types(field.annotation))
    return field.description or " ".join(dict.fromkeys(filter(None, sections)))


def summary_of(thing: Any) -> str:
    """Return the first sentence of a docstring; where that refers to another class, of the module's."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return ""
    first = _first_sentence(thing.__doc__)
    if first.startswith("See ") or first.startswith(f"{thing.__name__}("):
        first = _first_sentence(getattr(inspect.getmodule(thing), "__doc__", ""))
    return first


def summary_of_part(name: str, module: str) -> str:
    """Return the first sentence about the built-in part that a module registers, which is not imported for it."""
    specification = find_spec(module)
    if specification is None or specification.origin is None:
        return ""
    tree = ast.parse(Path(specification.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        names = [
            call.args[0].value
            for call in (node.decorator_list if isinstance(node, ast.ClassDef) else [])
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)
        ]
        if isinstance(node, ast.ClassDef) and name in names:
            first = _first_sentence(ast.get_docstring(node))
            return _first_sentence(ast.get_docstring(tree)) if first.startswith("See ") else first
    return ""


def _first_sentence(text: str | None) -> str:
    paragraph = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    return SENTENCE_END.split(paragraph, maxsplit=1)[0]
