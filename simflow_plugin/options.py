"""The base class of every part's options: typed, frozen, and strict about unknown keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one part. An unknown key is an error: an option without effect is worse than none."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean `x`? Known: a, b, x.' for a name that is not among `known`."""
    choices = sorted(known)
    matches = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean `{matches[0]}`?" if matches else ""
    return f"{hint} Known: {', '.join(choices) if choices else '(none)'}."
