"""A data set on the command line: a folder of images, a name of the registry, or a YAML mapping."""

from __future__ import annotations

import os.path

from simflow_plugin import registry
from simflow_plugin.config.loading import resolve_part
from simflow_plugin.config.validation import validate
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.registry import Part


def resolve_data(text: str, option: str) -> Part:
    """Return the data set that an argument names, its options resolved.

    Args:
        text: as written.
        option: its name, for messages.
    Raises:
        ConfigError: if it is no folder and no data set, or has wrong options.
    """
    source = YamlSource({}, {}, option)
    if os.path.isdir(os.path.expanduser(text)):  # unlike Path.is_dir, False for a mapping too long for a name
        source.values["data"] = {"name": "image_folder", "root": text}
    else:
        source.override(f"data={text}", option=option)
    raw = validate(Part, source.values["data"], source, ("data",))
    return resolve_part(raw, registry.DATASETS, source, ("data",))
