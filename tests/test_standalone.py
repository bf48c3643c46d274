"""Commands that are programs of their own end as they do within `simflow`."""

import runpy
import sys
from pathlib import Path

import pytest

import simflow_plugin

MODULES = {
    "simflow_plugin.cli.evaluate": (["nowhere"], "error: nowhere: no such folder"),
    "simflow_plugin.cli.statistics": (["nowhere", "--out", "a.npz"], "error: DATA nowhere: no such folder"),
    "simflow_plugin.train": (["--config", "nowhere"], "error: "),
}


@pytest.mark.parametrize("module", MODULES)
def test_a_mistake_is_one_message_and_status_2(module, monkeypatch, capsys):
    arguments, message = MODULES[module]
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("module", MODULES)
def test_help_names_types_in_words(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "PATH" in text
    assert "RANGE" not in text


def test_these_are_all_modules_that_are_programs():
    """`python -m simflow_plugin` is the group itself."""
    folder = Path(simflow_plugin.__path__[0])
    programs = {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert programs == {*MODULES, "simflow_plugin.__main__"}
