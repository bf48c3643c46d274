"""`simflow patch`: what a user types and reads."""

from __future__ import annotations

import pytest

from simflow_plugin.hosts import manifest
from tests.commands import simflow, succeed


@pytest.fixture
def only_host(standin, monkeypatch):
    """Let the command know the stand-in as the one host."""
    monkeypatch.setattr(manifest, "resource_dir", lambda name: standin.patches)


@pytest.mark.usefixtures("only_host")
def test_applying_twice_says_that_nothing_is_to_do(standin):
    assert "wrote standin_host/train.py" in succeed("patch", "standin", standin.root)
    assert "already patched" in succeed("patch", "standin", standin.root)


@pytest.mark.usefixtures("only_host")
def test_check_tells_the_state_before_and_after(standin):
    assert "not patched; the patch would apply" in succeed("patch", "standin", standin.root, "--check")
    succeed("patch", "standin", standin.root)
    assert succeed("patch", "standin", standin.root, "--check").splitlines()[-1] == "patched"


@pytest.mark.usefixtures("only_host")
def test_revert_takes_it_out(standin):
    before = standin.contents()
    succeed("patch", "standin", standin.root)
    assert "wrote" in succeed("patch", "standin", standin.root, "--revert")
    assert standin.contents() == before
    assert "nothing to take out" in succeed("patch", "standin", standin.root, "--revert")


@pytest.mark.usefixtures("only_host")
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
@pytest.mark.usefixtures("only_host")
def test_mistakes_end_in_one_line(words, message):
    status, output = simflow("patch", *words)
    assert status == 2
    assert message in output


def test_the_shipped_hosts_are_found():
    assert "repa-e" in manifest.known_hosts()
