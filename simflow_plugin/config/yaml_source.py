"""YAML files as raw mappings that remember which file and line each key came from.

A file may name another one to start from (`extends: quickstart`); mappings are merged key by key. Overrides
(`--set a.b=value`) come last. Where a key came from is kept, so that an error can say it.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simflow_plugin.errors import ConfigError
from simflow_plugin.resources import resource_dir

KeyPath = tuple[str, ...]
LARGEST_FILE = 1 << 20
"""Bytes of a configuration."""
MOST_NODES = 100_000
"""Values of a configuration after every alias is written out: nine lines of aliases can stand for 10^9."""
BASE_60_OR_OCTAL = re.compile(r"[-+]?(\d[\d_]*(:[0-5]?\d)+(\.\d*)?|0[0-7_]*[0-7])")
"""Numbers that YAML 1.1 reads as others than are written: 1:30 as 90, 010 as 8."""
PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
WITHOUT_TAG = "Write the value itself; to start from another file use `extends: FILE`."


Where = Callable[[int], str]
"""From a line of a text, counted from 0, to what a message calls that place: 'file:line', or '--set a.b'."""


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

    def override(self, assignment: str, option: str = "--set") -> None:
        """Apply `a.b=value`; the value is read as YAML.

        Args:
            assignment: what the user wrote.
            option: where; for messages.
        Raises:
            ConfigError: if there is no `=`, the value is not YAML, or a parent key holds a value that is no mapping.
        """
        dotted, separator, text = assignment.partition("=")
        if not separator or not dotted:
            example = "--set training.steps=100" if option == "--set" else f"{option} root=FOLDER"
            raise ConfigError(f"{option} {assignment}: expected key.sub=value, for example {example}")
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
                raise ConfigError(f"{option} {assignment}: {parent} is {child!r}, which has no keys below it")
            target[key] = child
            target = child
        place = f"{option} {dotted}"
        # What the file had below this key is gone, and so is where it stood.
        self.places = {known: line for known, line in self.places.items() if known[: len(path)] != path}
        if text.startswith("@"):  # `@STEP`, a checkpoint: YAML reserves the sign, and a shell eats the quotes
            target[path[-1]] = text
        else:
            node = _compose(text, lambda _: place, "one value, such as 100, [1, 2] or '{name: digits}'")
            target[path[-1]] = None if node is None else _construct(node, lambda _: place, path, self.places)
        self.places[path] = place


def read_yaml_source(name: str) -> YamlSource:
    """Read a configuration by path, or by the name of one that ships with the package.

    Raises:
        ConfigError: if there is no such file, it cannot be read, is not YAML, not a mapping, has a key twice, or
            extends itself.
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
        if _is_file(candidate):
            return candidate
    raise ConfigError(
        f"{name}: no such configuration: neither a file nor the name of a shipped one."
        f"{_nearest(name, shipped_configs())} All of them: simflow config list."
    )


def _nearest(name: str, known: list[str], count: int = 3) -> str:
    """Return ' Did you mean `a`, `b` or `c`?' of the nearest names; a study's runs are found by their own name too."""
    by_last_part = {known_name.rpartition("/")[2]: known_name for known_name in reversed(known)}
    found = difflib.get_close_matches(name, known, count, cutoff=0.5)
    last = difflib.get_close_matches(name.rpartition("/")[2], by_last_part, count, cutoff=0.6)
    found = list(dict.fromkeys([*found, *(by_last_part[part] for part in last)]))[:count]
    names = [f"`{one}`" for one in found]
    return f" Did you mean {' or '.join(filter(None, (', '.join(names[:-1]), names[-1])))}?" if names else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a folder that may not be searched, a name that is too long
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be read ({error.strerror}). Check its permissions, or name another file."
    )


def shipped_configs() -> list[str]:
    """Return the names of the configurations that ship with the package."""
    root = resource_dir("configs")
    names = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return [name for name in names if not name.startswith("accelerate/")]


def _read(path: Path, seen: tuple[Path, ...]) -> YamlSource:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` goes round in a circle: {' -> '.join(str(p) for p in seen)}")
    places: dict[KeyPath, str] = {}

    def where(line: int) -> str:
        return f"{path}:{line + 1}"

    node = _compose(_read_text(path), where, "`key: value` lines")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping (`key: value` lines) at the top level.")
    values = _construct(node, where, (), places)
    base_name = values.pop("extends", None)
    source = YamlSource(values, places, str(path))
    if base_name is None:
        return source
    base = _read(find_config(str(base_name), relative_to=path.parent), (*seen, path.resolve()))
    return merge_over(base, source)


def merge_over(base: YamlSource, over: YamlSource) -> YamlSource:
    """Return `base` with the keys of `over` in place of its own, mapping by mapping; errors name `over`."""
    return YamlSource(_merge(base.values, over.values), {**base.places, **over.places}, over.name)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: more than {LARGEST_FILE} bytes: not a configuration.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not YAML: the file is not UTF-8 text.") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _compose(text: str, where: Where, expected: str) -> yaml.Node | None:
    """Return the tree of YAML nodes of `text`, None where it is empty."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{where(line)}: not YAML: {problem}. Expected {expected}.") from error
    except RecursionError as error:
        raise ConfigError(f"{where(0)}: nested too deep to be a configuration.") from error
    if node is not None and _num_values(node, {}) > MOST_NODES:
        raise ConfigError(
            f"{where(0)}: aliases (`*name`) stand for more than {MOST_NODES} values. Write out what is meant."
        )
    return node


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out; each node is looked at once."""
    if id(node) not in known:
        known[id(node)] = 1  # an alias within what it stands for has an error of its own
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [child for item in children for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_num_values(child, known) for child in parts)
    return known[id(node)]


def _construct(
    node: yaml.Node, where: Where, path: KeyPath, places: dict[KeyPath, str], parents: tuple[int, ...] = ()
) -> Any:
    """Build plain data from a YAML node, noting each key's place.

    Args:
        node: of `_compose`.
        where: from a line to 'file:line'.
        path: of `node`.
        places: filled in.
        parents: identities of the nodes above: an alias may name one of them, and would never end.
    Raises:
        ConfigError: for a key that stands twice, a tag that is not plain YAML, a value that is not of its form (a
            date in month 13), or an alias that contains itself.
    """
    place, key = where(node.start_mark.line), ".".join(path)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, f"{place}: {key}")
    if id(node) in parents:
        raise ConfigError(
            f"{place}: {key}: an alias (`*name`) within what it stands for. Write the value out."
        )
    if node.tag not in PLAIN_TAGS:
        raise ConfigError(f"{place}: {key}: the tag {node.tag} is not known here. {WITHOUT_TAG}")
    parents = (*parents, id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_construct(n, where, (*path, str(i)), places, parents) for i, n in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = where(key_node.start_mark.line)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{line}: {key or 'the file'}: a key is no name. Expected `key: value` lines.")
        below = (*path, str(key_node.value))
        if below[-1] in mapping:
            raise ConfigError(f"{line}: {'.'.join(below)}: stands twice in the same mapping.")
        places[below] = line
        mapping[below[-1]] = _construct(value_node, where, below, places, parents)
    return mapping


def _scalar(node: yaml.ScalarNode, place: str) -> Any:
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except yaml.constructor.ConstructorError as error:
        raise ConfigError(f"{place}: {error.problem or error.context}. {WITHOUT_TAG}") from error
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{place}: {node.value} looks like a date or number, but is none ({error}). Put it in quotes."
        ) from error
    if not isinstance(value, str) and node.style is None and BASE_60_OR_OCTAL.fullmatch(node.value):
        raise ConfigError(
            f"{place}: {node.value} means {value} in YAML. Write {value} if that is meant, else put it in quotes."
        )
    return _number(value) if isinstance(value, str) and node.style is None else value


def _number(text: str) -> Any:
    """Read 1e-4 as a number: YAML 1.1 calls it a string because it lacks the dot."""
    try:
        return float(text) if "e" in text.lower() else text
    except ValueError:
        return text


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key. A part that changes its name drops the options of the one it replaces."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, str):
            old = {"name": old}
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            and value.get("name", old.get("name")) == old.get("name")
        ):
            merged[key] = _merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
