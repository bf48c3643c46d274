"""Loading of configurations: YAML -> validated, typed, resolved; errors name the file, the line and the key.

Resolving looks every part up in its registry, validates its options, and writes out the defaults; then the values are
checked against each other, before anything is built.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simflow_plugin.config.checks import check_config
from simflow_plugin.config.schema import Objective, RunConfig
from simflow_plugin.config.validation import validate
from simflow_plugin.config.yaml_source import KeyPath, YamlSource, read_yaml_source
from simflow_plugin.errors import ConfigError, RegistryError
from simflow_plugin.options import Options
from simflow_plugin.registry import DATASETS, RECONSTRUCTION_LOSSES, Part, Registry


def load_config(name: str, overrides: list[str] | None = None) -> RunConfig:
    """Read, validate, resolve and check a configuration.

    Args:
        name: a path, or the name of a shipped configuration.
        overrides: `key.sub=value` assignments, applied last.
    Raises:
        ConfigError: naming the file, the line, the key, what was expected and what to do.
    """
    source = read_yaml_source(name)
    for assignment in overrides or []:
        source.override(assignment)
    return config_from_source(source)


def config_from_source(source: YamlSource) -> RunConfig:
    """Validate a raw mapping, resolve its parts and check that the values fit together."""
    config = validate(RunConfig, source.values, source, ())
    resolved = resolve_parts(config, source, ())
    check_config(resolved, source)
    return resolved


def resolve_parts(options: Any, source: YamlSource, path: KeyPath) -> Any:
    """Validate the options of all parts that `options` holds, at any depth, and write out their defaults.

    Args:
        options: a section, or options of a part; a field with a part has its registry beside the type.
        source: where its keys came from.
        path: of `options` in the source.
    Raises:
        ConfigError: see `resolve_part`.
    """
    update: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        registries = [entry for entry in field.metadata if isinstance(entry, Registry)]
        if isinstance(value, Part):
            if registries:
                update[name] = resolve_part(value, registries[0], source, (*path, name))
        elif isinstance(value, Options):
            update[name] = resolve_parts(value, source, (*path, name))
    resolved = options.model_copy(update=update)
    return _resolve_losses(resolved, source, path) if isinstance(resolved, Objective) else resolved


def _resolve_losses(objective: Objective, source: YamlSource, path: KeyPath) -> Objective:
    """Resolve the reconstruction losses, whose names are keys."""
    losses = {}
    for name, loss in objective.reconstruction.items():
        place = (*path, "reconstruction", name, *(("options",) if loss.options else ()))
        part = resolve_part(
            Part.model_validate({"name": name, **loss.options}), RECONSTRUCTION_LOSSES, source, place
        )
        losses[name] = loss.model_copy(update={"options": part.options})
    return objective.model_copy(update={"reconstruction": losses})


def resolve_part(part: Part, parts: Registry, source: YamlSource, path: KeyPath) -> Part:
    """Validate a part's options, and write out their defaults.

    Args:
        part: as written.
        parts: its registry.
        source: where its keys came from.
        path: of the part in the source.
    Raises:
        ConfigError: if the part is unknown or does not load, or its options are wrong or clash.
    """
    key = f"{'.'.join(path)}: " if path else ""
    try:
        facts = parts.facts(part.name)
    except RegistryError as error:
        raise ConfigError(f"{source.place((*path, 'name'))}: {key}{error}") from error
    with parts.blaming(part.name):
        options = resolve_parts(validate(facts.Options, part.options, source, path), source, path)
        try:
            options = options.resolved()
        except ConfigError as error:
            raise ConfigError(f"{source.place(path)}: {key}{error}") from error
        return part.model_copy(update={"options": options.model_dump(mode="json")})


def resolve_data(
    text: str, option: str, assignments: Sequence[str] = (), prefers_names: bool = False
) -> Part:
    """Return the data set that an argument of the command line names, its options resolved.

    Args:
        text: a folder of images, the name of a data set, or a YAML mapping.
        option: where it was written, for messages.
        assignments: `key=value` options of the data set, given by `<option>-option`.
        prefers_names: a registered name is that data set, also beside a folder of that name.
    Raises:
        ConfigError: if it is no folder and no data set, or has wrong options.
    """
    written = YamlSource({})
    is_name = prefers_names and text in DATASETS.names()
    # Unlike Path.is_dir, isdir is False for a mapping too long for a name.
    if not is_name and os.path.isdir(os.path.expanduser(text)):
        written.values["data"] = {"name": "image_folder", "root": text}
    else:
        written.override(f"data={text}", option)
    source = YamlSource({}, name=f"{option} {text}")
    part = validate(Part, written.values["data"], source, ())
    source.values = {"name": part.name, **part.options}
    for assignment in assignments:
        source.override(assignment, f"{option}-option")
    return resolve_part(Part.model_validate(source.values), DATASETS, source, ())


def read_run_config(path: Path) -> RunConfig:
    """Read the resolved configuration that a run directory holds.

    Raises:
        ConfigError: if the file is missing or was edited into something invalid.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no resolved configuration; is {path.parent} a run directory?")
    return config_from_source(read_yaml_source(str(path)))
