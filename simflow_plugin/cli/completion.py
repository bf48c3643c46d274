"""Completion of names in the shell: configurations that ship with the package, and files."""

from __future__ import annotations

import glob
import os


def complete_configuration(incomplete: str) -> list[str]:
    """Return the shipped configurations, YAML files and folders that begin with what was typed."""
    from simflow_plugin.config.yaml_source import shipped_configs

    paths = [f"{path}/" if os.path.isdir(path) else path for path in glob.glob(glob.escape(incomplete) + "*")]
    files = [path for path in paths if path.endswith(("/", ".yaml", ".yml"))]
    return [name for name in shipped_configs() if name.startswith(incomplete)] + sorted(files)
