"""An extension of griffe, which mkdocstrings reads docstrings by: sections need no blank line before them here."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<=\S)\n(?=(?:Args|Returns|Yields|Raises|References?):\n)")


class SeparatedSections(griffe.Extension):
    """Puts a blank line before each section of a docstring, as the parser of Google's style expects it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was just read."""
        if obj.docstring is not None:
            obj.docstring.value = separated(obj.docstring.value)


def separated(docstring: str) -> str:
    """Return a docstring with a blank line before each section."""
    return SECTION.sub("\n\n", docstring)
