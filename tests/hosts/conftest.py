"""Fixtures of the host tests: a fresh checkout of the stand-in, and its patched script with packages around it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from simflow_plugin.hosts import patching
from tests.hosts.standin import StandIn, install, make_standin

OWN_ENTRIES = {
    "standin.models": "simflow_plugin.hosts.repa_e_adapters:add_models",
    "standin.autoencoders": "simflow_plugin.hosts.repa_e_adapters:add_autoencoders",
    "standin.samplers": "simflow_plugin.hosts.repa_e_adapters:add_samplers",
}


@pytest.fixture
def standin(tmp_path: Path) -> StandIn:
    return make_standin(tmp_path)


@pytest.fixture
def import_script(standin, tmp_path, monkeypatch):
    """Return a function that imports the stand-in's script, patched or not, among some installed packages."""

    def load(is_patched: bool = True, packages: dict[str, dict[str, str]] | None = None):
        forget()
        if is_patched:
            patching.apply(standin.patch, standin.root)
        site = tmp_path / "site"
        for distribution, entries in (packages if packages is not None else {"simflow": OWN_ENTRIES}).items():
            install(site, distribution, entries)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.syspath_prepend(str(standin.root))
        importlib.invalidate_caches()
        return importlib.import_module("standin_host.train")

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "standin_host"]:
            del sys.modules[name]

    yield load
    forget()
