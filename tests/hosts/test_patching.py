"""Applying to a checkout: all or nothing, twice is once, and back to the byte."""

from __future__ import annotations

import os
import subprocess

import pytest

from simflow_plugin.errors import HostError
from simflow_plugin.hosts import patching
from simflow_plugin.hosts.manifest import known_hosts
from tests.hosts.standin import git

TRAIN = "standin_host/train.py"


def apply(standin):
    return patching.apply(standin.patch, standin.root)


def edit(standin):
    with (standin.root / TRAIN).open("a") as file:
        file.write("# mine\n")


def test_reverting_restores_every_byte_and_git_sees_no_change(standin):
    before = standin.contents()
    apply(standin)
    assert standin.contents() != before
    patching.revert(standin.patch, standin.root)
    assert standin.contents() == before
    assert git(standin.root, "status", "--porcelain") == ""


def test_applying_twice_changes_nothing_more_and_finishes_a_partial_patch(standin):
    apply(standin)
    once = standin.contents()
    assert apply(standin) == []
    git(standin.root, "checkout", TRAIN)
    assert apply(standin) == [TRAIN]
    assert standin.contents() == once


def test_check_changes_nothing(standin):
    before = standin.contents()
    assert set(patching.check(standin.patch, standin.root).values()) == {"original"}
    assert standin.contents() == before


@pytest.mark.parametrize("action", [patching.apply, patching.check, patching.revert])
def test_a_file_that_differs_is_refused_by_name_and_nothing_is_written(standin, action):
    if action is patching.revert:
        apply(standin)
    edit(standin)
    before = standin.contents()
    with pytest.raises(HostError, match=r"standin_host/train\.py \(different\)"):
        action(standin.patch, standin.root)
    assert standin.contents() == before


def damage_patch(standin):
    broken = standin.patch.folder / "models.patch"
    broken.write_text(broken.read_text().replace("skipped", "skapped"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda standin: (standin.root / TRAIN).unlink(), r"train\.py \(missing\)"),
        (lambda standin: (standin.root / TRAIN).chmod(0o444), r"train\.py: is read-only"),
        (damage_patch, "install simflow-plugin again"),
    ],
    ids=["missing", "read-only", "damaged patch"],
)
def test_what_cannot_be_patched_is_refused_by_name_and_nothing_is_written(standin, damage, message):
    damage(standin)
    before = standin.contents()
    with pytest.raises(HostError, match=message):
        apply(standin)
    assert standin.contents() == before


@pytest.mark.parametrize("is_committed", [False, True])
def test_own_files_and_commits_on_top_of_the_pinned_one_are_left_alone(standin, is_committed):
    notes = standin.root / "notes.txt"
    notes.write_text("mine")
    if is_committed:
        git(standin.root, "add", ".")
        git(standin.root, "commit", "-q", "-m", "mine")
    assert apply(standin)
    patching.revert(standin.patch, standin.root)
    assert notes.read_text() == "mine"


def test_another_commit_is_refused_with_both_commits(standin):
    git(standin.root, "checkout", "-q", "--orphan", "other")
    git(standin.root, "commit", "-q", "-m", "another history")
    head = git(standin.root, "rev-parse", "HEAD")
    with pytest.raises(HostError, match=rf"{head}.*{standin.patch.commit}"):
        apply(standin)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("empty", "no git checkout.*git clone"),
        ("nowhere", "no such folder"),
        ("checkout/standin_host", "give the top"),
    ],
)
def test_a_path_that_is_no_checkout_is_refused_with_a_remedy(standin, tmp_path, monkeypatch, path, message):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError, match=message):
        patching.apply(standin.patch, tmp_path / path)


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
        apply(standin)
    assert standin.contents() == before


def test_permissions_survive(standin):
    script = standin.root / TRAIN
    script.chmod(0o755)
    apply(standin)
    assert script.stat().st_mode & 0o777 == 0o755


def test_git_settings_of_the_user_change_no_byte(standin, tmp_path, monkeypatch):
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[core]\n\tautocrlf = true\n[apply]\n\twhitespace = fix\n\tignoreWhitespace = change\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    assert apply(standin)


def test_without_git_the_error_names_it(standin, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HostError, match="git: not found; install it"):
        patching.check(standin.patch, standin.root)


def run_remedy(patch, root):
    """Run the command that the refusal of `root` prints between backticks, as it stands there."""
    with pytest.raises(HostError, match="`git ") as caught:
        patching.check(patch, root)
    subprocess.run(str(caught.value).split("`")[1], shell=True, check=True, capture_output=True)


def test_remedy_for_a_file_that_differs_works_as_printed(standin):
    edit(standin)
    run_remedy(standin.patch, standin.root)
    assert apply(standin)


@pytest.mark.parametrize("depth", [[], ["--depth", "1"]], ids=["full", "shallow"])
def test_remedy_for_another_commit_works_as_printed_in_a_full_and_in_a_shallow_clone(
    standin, tmp_path, depth
):
    origin, clone = tmp_path / "the origin", tmp_path / "a clone"
    git(standin.root, "clone", "-q", str(standin.root), str(origin))
    git(origin, "tag", "pinned")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(origin, "checkout", "-q", "--orphan", "other")
    git(origin, "rm", "-q", "-r", "--cached", ".")
    git(origin, "commit", "-q", "--allow-empty", "-m", "another history")
    git(tmp_path, "clone", "-q", *depth, f"file://{origin}", str(clone))
    patch = standin.patch.model_copy(update={"url": str(origin)})
    run_remedy(patch, clone)
    assert patching.apply(patch, clone)


@pytest.mark.parametrize("holds", [None, "notes.txt"], ids=["nothing there", "other files there"])
def test_remedy_without_a_checkout_works_as_printed(standin, tmp_path, monkeypatch, holds):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder, patch = tmp_path / "some folder", standin.patch.model_copy(update={"url": str(standin.root)})
    if holds:
        folder.mkdir()
        (folder / holds).write_text("mine")
    run_remedy(patch, folder)
    assert patching.apply(patch, tmp_path / "some folder-standin" if holds else folder)


def test_shipped_patches_only_insert_and_are_all_in_their_manifest():
    hosts = known_hosts()
    assert "repa-e" in hosts
    for host in hosts.values():
        named = [file.patch for file in host.files.values()]
        assert {file.name for file in host.folder.glob("*.patch")} == set(named)
        for name in named:
            rows = (host.folder / name).read_text().splitlines()
            assert all(row.startswith(("+", "--- ", "@@ ")) for row in rows), name
