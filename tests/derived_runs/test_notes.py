"""The note of where a derived run came from may have any content: it is read, or refused by one clear error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simflow_plugin.derived_runs.parent import _read_note
from simflow_plugin.errors import ConfigError

CONTENTS = [
    b"[]",
    b"null",
    b"[" * 100_000,
    b"\xff",
    b"",
    b'{"parent": 1, "values": {}}',
    b'{"parent": {}, "values": {}}',
]


@pytest.mark.parametrize("content", [*CONTENTS, None])
def test_note_of_any_content_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    note = tmp_path / "derived.json"
    os.mkfifo(note) if content is None else note.write_bytes(content)
    with pytest.raises(ConfigError, match=r"derived\.json"):
        _read_note(note)


def test_note_that_holds_what_it_should_is_read(tmp_path: Path) -> None:
    note = tmp_path / "derived.json"
    note.write_text('{"parent": {"run": "a", "step": 3}, "values": {"name": "b"}}')
    assert _read_note(note)["values"] == {"name": "b"}
