"""YAML files as raw mappings that remember which file and line each key came from.

A file may name another one to start from (`extends: quickstart`); mappings are merged key by key. Overrides
(`--set a.b=value`) come last. Where a key came from is kept, so that an error can say it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simflow_plugin.errors import ConfigError
from simflow_plugin.options import did_you_mean
from simflow_plugin.resources import resource_dir

KeyPath = tuple[str, ...]


@dataclass
class YamlSource:
    """A merged raw mapping and the place of each key.

    Args:
        values: what was read, plain Python data.
        places: key path -> 'file:line' or '--set a.b'.
        name: of the configuration, for messages about a key that is missing.
    """

    values: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)
    name: str = "configuration"

    def place(self, path: KeyPath) -> str:
        """Return where `path`, or its nearest ancestor that was written down, came from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name

    def override(self, assignment: str) -> None:
        """Apply `a.b=value`; the value is read as YAML.

        Raises:
            ConfigError: if there is no `=`, or if a parent key holds a value that is no mapping.
        """
        dotted, separator, text = assignment.partition("=")
        if not separator or not dotted:
            raise ConfigError(
                f"--set {assignment}: expected key.sub=value, for example --set training.steps=100"
            )
        path = tuple(dotted.strip().split("."))
        target = self.values
        for depth, key in enumerate(path[:-1]):
            child = target.get(key)
            if isinstance(child, str):
                child = {"name": child}  # `model: simflow` is short for `model: {name: simflow}`
            elif child is None:
                child = {}
            elif not isinstance(child, dict):
                parent = ".".join(path[: depth + 1])
                raise ConfigError(f"--set {assignment}: {parent} is {child!r}, which has no keys below it")
            target[key] = child
            target = child
        target[path[-1]] = _parse_scalar(text, f"--set {assignment}")
        self.places[path] = f"--set {dotted}"


def read_yaml_source(name: str) -> YamlSource:
    """Read a configuration by path, or by the name of one that ships with the package.

    Raises:
        ConfigError: if there is no such file, it is not YAML, not a mapping, has a key twice, or extends itself.
    """
    return _read(find_config(name), seen=())


def find_config(name: str, relative_to: Path | None = None) -> Path:
    """Return the file that `name` means: a path first, then the name of a shipped configuration.

    Raises:
        ConfigError: naming the places that were tried and the configurations that ship with the package.
    """
    given = Path(name).expanduser()
    shipped = resource_dir("configs")
    candidates = [given] if relative_to is None else [relative_to / given]
    candidates += [shipped / name, shipped / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"{name}: no such configuration: neither a file nor the name of a shipped one."
        f"{did_you_mean(name, shipped_configs())}"
    )


def shipped_configs() -> list[str]:
    """Return the names of the configurations that ship with the package."""
    root = resource_dir("configs")
    names = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return [name for name in names if not name.startswith("accelerate/")]


def _read(path: Path, seen: tuple[Path, ...]) -> YamlSource:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` goes round in a circle: {' -> '.join(str(p) for p in seen)}")
    node = _compose(path)
    places: dict[KeyPath, str] = {}
    values = _construct(node, path, (), places)
    base_name = values.pop("extends", None)
    source = YamlSource(values, places, str(path))
    if base_name is None:
        return source
    base = _read(find_config(str(base_name), relative_to=path.parent), (*seen, path.resolve()))
    merged = _merge(base.values, values)
    return YamlSource(merged, {**base.places, **places}, str(path))


def _compose(path: Path) -> yaml.MappingNode:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or "the file is not UTF-8 text"
        raise ConfigError(f"{where}: not YAML: {problem}. Expected `key: value` lines.") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping (`key: value` lines) at the top level.")
    return node


def _construct(node: yaml.Node, file: Path, path: KeyPath, places: dict[KeyPath, str]) -> Any:
    """Build plain data from a YAML node, noting each key's line; refuses a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = f"{file}:{key_node.start_mark.line + 1}"
            if key in mapping:
                raise ConfigError(f"{line}: {'.'.join((*path, key))}: stands twice in the same mapping.")
            places[(*path, key)] = line
            mapping[key] = _construct(value_node, file, (*path, key), places)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, file, (*path, str(i)), places) for i, child in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    value = loader.construct_object(node, deep=True)
    is_plain = getattr(node, "style", None) is None
    return _number(value) if isinstance(value, str) and is_plain else value


def _number(text: str) -> Any:
    """Read 1e-4 as a number: YAML 1.1 calls it a string because it lacks the dot."""
    try:
        return float(text) if "e" in text.lower() else text
    except ValueError:
        return text


def _parse_scalar(text: str, where: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: the value is not YAML: {error}") from error
    return _number(value) if isinstance(value, str) else value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key. A part that changes its name drops the options of the one it replaces."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, dict) and value.get("name", old) == old:
            old = {"name": old}
        renamed = (
            isinstance(value, dict)
            and isinstance(old, dict)
            and value.get("name", old.get("name")) != old.get("name")
        )
        if isinstance(value, dict) and isinstance(old, dict) and not renamed:
            merged[key] = _merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
