"""Facts about a declared option, read from its field: its default as YAML, and what it is for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from simflow_plugin.config.type_words import members
from simflow_plugin.options import nested_options

REQUIRED = "(required)"
SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")


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
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif isinstance(value, Mapping):
        value = {
            key: one.model_dump(mode="json") if isinstance(one, BaseModel) else one
            for key, one in value.items()
        }
    elif isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
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
