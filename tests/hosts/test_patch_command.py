"""`simflow patch`: what a user types and reads."""

from __future__ import annotations

import pytest

from simflow_plugin.hosts import manifest
from tests.commands import simflow, succeed


@pytest.fixture(autouse=True)
def _only_host(standin, monkeypatch):
    """Let the command know the stand-in as the one host."""
    monkeypatch.setattr(manifest, "resource_dir", lambda name: standin.patches)


def test_state_and_written_files_are_printed_on_the_way_there_and_back(standin):
    before, words = standin.contents(), ("patch", "standin", standin.root)
    assert "not patched; the patch would apply" in succeed(*words, "--check")
    assert "wrote standin_host/train.py" in succeed(*words)
    assert "already patched" in succeed(*words)
    assert succeed(*words, "--check").splitlines()[-1] == "patched"
    assert "wrote" in succeed(*words, "--revert")
    assert standin.contents() == before
    assert "nothing to take out" in succeed(*words, "--revert")


def test_list_names_hosts_and_commits(standin):
    assert standin.patch.commit in succeed("patch", "--list")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["standn", "."], "Did you mean `standin`"),
        (["standin"], "expected HOST and PATH"),
        (["standin", ".", "--check", "--revert"], "choose one"),
    ],
)
def test_mistakes_end_in_one_line(words, message):
    status, output = simflow("patch", *words)
    assert status == 2
    assert message in output
