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


@pytest.fixture(params=MODULES)
def run(request, monkeypatch, capsys):
    """A function that runs the module with arguments and returns status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [request.param, *arguments])
        monkeypatch.delitem(sys.modules, request.param, raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(request.param, run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    run.mistake, run.message = MODULES[request.param]
    return run


def test_a_mistake_is_one_message_and_status_2(run):
    status, _, errors = run(*run.mistake)
    assert status == 2
    assert errors.startswith(run.message)


def test_help_names_types_in_words(run):
    status, text, _ = run("--help")
    assert status == 0
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
