"""Insertion-only patches: unified diffs with zero context that hold none of the host's own lines.

    @@ -535,0 +536,2 @@     after line 535 of the original insert the two lines that follow
    +first
    +second

`git apply --unidiff-zero` reads the same files. Here they are applied in memory, so that every result can be
checked before anything is written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from simflow_plugin.errors import HostError

HUNK_HEADER = re.compile(rb"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True)
class Insertion:
    """Lines (each with its line ending) that go behind line `after` of the original, 0 for the top."""

    after: int
    lines: tuple[bytes, ...]


def parse_patch(patch: bytes, name: str) -> list[Insertion]:
    """Read the patch of one file.

    Args:
        patch: content of the patch file.
        name: of the patch file, for messages.
    Raises:
        HostError: if it does anything but insert, or its headers do not count its lines.
    """
    insertions: list[Insertion] = []
    rows = patch.splitlines(keepends=True)
    position = _skip_header(rows)
    inserted = 0
    while position < len(rows):
        header = HUNK_HEADER.match(rows[position])
        if header is None:
            raise HostError(
                f"{name}: line {position + 1} is no insertion of zero context; expected `@@ -N,0 +M,K @@`, found "
                f"{rows[position].decode(errors='replace').strip()!r}"
            )
        after, start, count = int(header[1]), int(header[2]), int(header[3] or 1)
        lines = rows[position + 1 : position + 1 + count]
        if len(lines) < count or not all(line.startswith(b"+") for line in lines):
            raise HostError(f"{name}: the hunk at line {position + 1} should hold {count} inserted lines")
        if start != after + inserted + 1:
            raise HostError(
                f"{name}: the hunk at line {position + 1} should start at +{after + inserted + 1}"
            )
        insertions.append(Insertion(after, tuple(line[1:] for line in lines)))
        inserted += count
        position += 1 + count
    if not insertions:
        raise HostError(f"{name}: holds no insertion; the installation is incomplete")
    return insertions


def insert(original: bytes, insertions: list[Insertion]) -> bytes:
    """Return the patched content of a file."""
    lines = original.splitlines(keepends=True)
    for insertion in reversed(insertions):
        lines[insertion.after : insertion.after] = insertion.lines
    return b"".join(lines)


def remove(patched: bytes, insertions: list[Insertion]) -> bytes:
    """Undo `insert`."""
    lines = patched.splitlines(keepends=True)
    for insertion in insertions:  # those before it are gone already, so its original line number holds
        del lines[insertion.after : insertion.after + len(insertion.lines)]
    return b"".join(lines)


def _skip_header(rows: list[bytes]) -> int:
    for index, row in enumerate(rows):
        if row.startswith(b"@@"):
            return index
    return len(rows)
