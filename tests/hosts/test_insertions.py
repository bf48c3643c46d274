"""Insertion-only patches: read strictly, applied and undone to the byte, as git applies them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.insertions import Insertion, insert, parse_patch, remove
from simflow_plugin.hosts.manifest import known_hosts
from tests.hosts.standin import git

LINES = st.lists(st.sampled_from([b"a\n", b"  b\n", b"\n"]), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(original=LINES, texts=st.dictionaries(st.integers(0, 6), LINES, max_size=4))
def test_removing_undoes_inserting(original, texts):
    insertions = [
        Insertion(after, tuple(rows)) for after, rows in sorted(texts.items()) if after <= len(original)
    ]
    content = b"".join(original)
    assert remove(insert(content, insertions), insertions) == content


@pytest.mark.parametrize(
    "patch",
    [
        b"@@ -1,1 +1,1 @@\n-old\n+new\n",
        b"@@ -1,0 +2,2 @@\n+only one\n",
        b"@@ -1,0 +2,2 @@\n+one\n-two\n",
        b"@@ -1,0 +7 @@\n+one\n",
        b"@@ -1,0 +2 @@\n+one\n context\n",
        b"",
    ],
)
def test_anything_but_an_insertion_is_refused_by_file_name(patch):
    with pytest.raises(HostError, match=r"some\.patch"):
        parse_patch(patch, "some.patch")


def test_git_applies_the_same_bytes(standin):
    for path in standin.patch.manifest.files:
        expected = standin.patch.patched(path, (standin.root / path).read_bytes())
        git(
            standin.root,
            "apply",
            "--unidiff-zero",
            str(standin.patch.folder / standin.patch.manifest.files[path].patch),
        )
        assert (standin.root / path).read_bytes() == expected


def test_shipped_patches_only_insert():
    for host in known_hosts().values():
        assert all(host.insertions(path) for path in host.manifest.files)


def test_every_shipped_patch_file_is_in_its_manifest():
    for host in known_hosts().values():
        assert {file.name for file in host.folder.glob("*.patch")} == {
            f.patch for f in host.manifest.files.values()
        }
