"""`simflow patch`: what a user types and reads."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from simflow_plugin.cli.patch import patch
from simflow_plugin.hosts import manifest


@pytest.fixture
def simflow_patch(standin, monkeypatch):
    """Return a function that runs the command with the stand-in as the one host."""
    app = typer.Typer()
    app.command()(patch)
    monkeypatch.setattr(manifest, "resource_dir", lambda name: standin.patches)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_applying_twice_says_that_nothing_is_to_do(simflow_patch, standin):
    assert "wrote standin_host/train.py" in simflow_patch("standin", standin.root).output
    again = simflow_patch("standin", standin.root)
    assert again.exit_code == 0
    assert "already patched" in again.output


def test_check_tells_the_state_before_and_after(simflow_patch, standin):
    assert "not patched; the patch would apply" in simflow_patch("standin", standin.root, "--check").output
    simflow_patch("standin", standin.root)
    assert simflow_patch("standin", standin.root, "--check").output.splitlines()[-1] == "patched"


def test_revert_takes_it_out(simflow_patch, standin):
    before = standin.contents()
    simflow_patch("standin", standin.root)
    assert "wrote" in simflow_patch("standin", standin.root, "--revert").output
    assert standin.contents() == before
    assert "nothing to take out" in simflow_patch("standin", standin.root, "--revert").output


def test_list_names_hosts_and_commits(simflow_patch, standin):
    assert standin.patch.manifest.commit in simflow_patch("--list").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["standn", "."], "Did you mean `standin`"),
        (["standin"], "expected HOST and PATH"),
        (["standin", ".", "--check", "--revert"], "choose one"),
    ],
)
def test_mistakes_end_in_one_line(simflow_patch, words, message):
    result = simflow_patch(*words)
    assert result.exit_code == 2
    assert message in result.output + result.stderr


def test_the_shipped_hosts_are_found():
    assert "repa-e" in manifest.known_hosts()
