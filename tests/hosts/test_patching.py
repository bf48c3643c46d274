"""Applying to a checkout: all or nothing, twice is once, and back to the byte."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from simflow_plugin.errors import HostError
from simflow_plugin.hosts import patching
from simflow_plugin.hosts.manifest import known_hosts
from tests.hosts.standin import git


def test_reverting_restores_every_byte_and_git_sees_no_change(standin):
    before = standin.contents()
    patching.apply(standin.patch, standin.root)
    assert standin.contents() != before
    patching.revert(standin.patch, standin.root)
    assert standin.contents() == before
    assert git(standin.root, "status", "--porcelain") == ""


def test_applying_twice_changes_nothing_more(standin):
    patching.apply(standin.patch, standin.root)
    once = standin.contents()
    assert patching.apply(standin.patch, standin.root) == []
    assert standin.contents() == once


def test_check_changes_nothing(standin):
    before = standin.contents()
    assert set(patching.check(standin.patch, standin.root).values()) == {"original"}
    assert standin.contents() == before


def test_applying_finishes_a_partial_patch(standin):
    patching.apply(standin.patch, standin.root)
    git(standin.root, "checkout", "standin_host/train.py")
    assert patching.apply(standin.patch, standin.root) == ["standin_host/train.py"]


@pytest.mark.parametrize("action", [patching.apply, patching.check, patching.revert])
def test_a_file_that_differs_is_refused_by_name_and_nothing_is_written(standin, action):
    if action is patching.revert:
        patching.apply(standin.patch, standin.root)
    with (standin.root / "standin_host/train.py").open("a") as file:
        file.write("# mine\n")
    before = standin.contents()
    with pytest.raises(HostError, match=r"standin_host/train\.py \(different\)"):
        action(standin.patch, standin.root)
    assert standin.contents() == before


def test_a_missing_file_is_refused_by_name(standin):
    (standin.root / "standin_host/models.py").unlink()
    with pytest.raises(HostError, match=r"standin_host/models\.py \(missing\)"):
        patching.apply(standin.patch, standin.root)


def test_other_work_in_the_checkout_is_left_alone(standin):
    notes = standin.root / "notes.txt"
    notes.write_text("mine")
    patching.apply(standin.patch, standin.root)
    patching.revert(standin.patch, standin.root)
    assert notes.read_text() == "mine"


def test_own_commits_on_top_of_the_pinned_one_are_welcome(standin):
    (standin.root / "notes.txt").write_text("mine")
    git(standin.root, "add", ".")
    git(standin.root, "commit", "-q", "-m", "mine")
    assert patching.apply(standin.patch, standin.root)


def test_another_commit_is_refused_with_both_commits(standin):
    git(standin.root, "checkout", "-q", "--orphan", "other")
    git(standin.root, "commit", "-q", "-m", "another history")
    head = git(standin.root, "rev-parse", "HEAD")
    with pytest.raises(HostError, match=rf"{head}.*{standin.patch.commit}"):
        patching.apply(standin.patch, standin.root)


def test_a_path_that_is_no_checkout_is_refused_with_a_remedy(standin, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError, match="no git checkout.*git clone"):
        patching.apply(standin.patch, tmp_path / "empty")
    with pytest.raises(HostError, match="no such folder"):
        patching.apply(standin.patch, tmp_path / "nowhere")
    with pytest.raises(HostError, match="give the top"):
        patching.apply(standin.patch, standin.root / "standin_host")


def test_a_read_only_file_is_refused_by_name_and_nothing_is_written(standin):
    file = standin.root / "standin_host/train.py"
    file.chmod(0o444)
    before = standin.contents()
    with pytest.raises(HostError, match=r"train\.py: is read-only"):
        patching.apply(standin.patch, standin.root)
    assert standin.contents() == before


def test_a_failure_half_way_leaves_the_checkout_as_it_was(standin, monkeypatch):
    before = standin.contents()
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(HostError, match="No space left"):
        patching.apply(standin.patch, standin.root)
    assert standin.contents() == before


def test_permissions_survive(standin):
    script = standin.root / "standin_host/train.py"
    script.chmod(0o755)
    patching.apply(standin.patch, standin.root)
    assert script.stat().st_mode & 0o777 == 0o755


def test_a_damaged_patch_is_refused_before_anything_is_written(standin):
    broken = standin.patch.folder / "models.patch"
    broken.write_text(broken.read_text().replace("skipped", "skapped"))
    before = standin.contents()
    with pytest.raises(HostError, match="install simflow-plugin again"):
        patching.apply(standin.patch, standin.root)
    assert standin.contents() == before


def test_git_settings_of_the_user_change_no_byte(standin, tmp_path, monkeypatch):
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[core]\n\tautocrlf = true\n[apply]\n\twhitespace = fix\n\tignoreWhitespace = change\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    assert patching.apply(standin.patch, standin.root)


def test_without_git_the_error_names_it(standin, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HostError, match="git: not found; install it"):
        patching.check(standin.patch, standin.root)


def test_remedy_for_a_file_that_differs_works_as_printed(standin):
    with (standin.root / "standin_host/train.py").open("a") as file:
        file.write("# mine\n")
    with pytest.raises(HostError, match="run `git ") as caught:
        patching.check(standin.patch, standin.root)
    command = str(caught.value).split("`")[1]
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert patching.apply(standin.patch, standin.root)


def at(standin, url):
    """Return the stand-in's patch for a host that is cloned from `url`."""
    return standin.patch.model_copy(update={"url": str(url)})


def run_remedy(error):
    """Run the command that a message prints between backticks, as it stands there."""
    subprocess.run(str(error).split("`")[1], shell=True, check=True, capture_output=True)


@pytest.mark.parametrize("depth", [[], ["--depth", "1"]], ids=["full", "shallow"])
def test_remedy_for_another_commit_works_as_printed_in_a_full_and_in_a_shallow_clone(
    standin, tmp_path, depth
):
    origin, patch = tmp_path / "the origin", at(standin, tmp_path / "the origin")
    git(standin.root, "clone", "-q", str(standin.root), str(origin))
    git(origin, "tag", "pinned")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(origin, "checkout", "-q", "--orphan", "other")
    git(origin, "rm", "-q", "-r", "--cached", ".")
    git(origin, "commit", "-q", "--allow-empty", "-m", "another history")
    clone = tmp_path / "a clone"
    git(tmp_path, "clone", "-q", *depth, f"file://{origin}", str(clone))
    with pytest.raises(HostError, match="is at commit") as caught:
        patching.check(patch, clone)
    run_remedy(caught.value)
    assert patching.apply(patch, clone)


@pytest.mark.parametrize("holds", [None, "notes.txt"], ids=["nothing there", "other files there"])
def test_remedy_without_a_checkout_works_as_printed(standin, tmp_path, monkeypatch, holds):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder, patch = tmp_path / "some folder", at(standin, standin.root)
    if holds:
        folder.mkdir()
        (folder / holds).write_text("mine")
    with pytest.raises(HostError, match="git clone") as caught:
        patching.check(patch, folder)
    run_remedy(caught.value)
    assert patching.apply(patch, tmp_path / "some folder-standin" if holds else folder)


def test_shipped_patches_only_insert_and_are_all_in_their_manifest():
    for host in known_hosts().values():
        assert {file.name for file in host.folder.glob("*.patch")} == {
            file.patch for file in host.files.values()
        }
        for file in host.files.values():
            rows = (host.folder / file.patch).read_text().splitlines()
            assert all(row.startswith(("+", "--- ", "@@ ")) for row in rows), file.patch
