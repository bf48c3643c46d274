"""Validation of raw values by pydantic, with errors that say where a key came from and what was meant."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from simflow_plugin.errors import ConfigError
from simflow_plugin.options import did_you_mean
from simflow_plugin.yaml_source import KeyPath, YamlSource


def validate(model: type[BaseModel], values: Any, source: YamlSource, prefix: KeyPath) -> Any:
    """Return `values` as a `model`.

    Args:
        model: options of a part, or the whole configuration.
        values: raw, as read.
        source: where each key came from.
        prefix: path of `values` in the source.
    Raises:
        ConfigError: one line per mistake: file, line, key, what was found, what was expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item, model, source, prefix) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error


def _explain(item: Any, model: type[BaseModel], source: YamlSource, prefix: KeyPath) -> str:
    """Turn one pydantic error into 'file:line: key: what is wrong. What to do.'"""
    # pydantic puts the names of validators and union members into the location: keep what the file has.
    location = tuple(str(key) for key in item["loc"])
    path = (*prefix, *_written(location, item))
    where, key = source.place(path), ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key.{did_you_mean(path[-1], _known_keys(model, location[:-1]))}"
    if item["type"] == "missing":
        return f"{where}: {key}: required, but not given."
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}; found {item['input']!r}."


def _written(location: KeyPath, item: Any) -> KeyPath:
    return tuple(key for key in location if not key.startswith("function-") and "[" not in key) or location


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys of the nested model at `path`."""
    current: Any = model
    for key in path:
        field = current.model_fields.get(key) if hasattr(current, "model_fields") else None
        if field is None:
            continue
        nested = [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(t)]
        nested += [
            t
            for outer in getattr(field.annotation, "__args__", ())
            for t in getattr(outer, "__args__", ())
            if _is_model(t)
        ]
        current = nested[0] if nested else current
    return list(current.model_fields)


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
