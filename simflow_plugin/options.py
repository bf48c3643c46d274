"""The base class of every part's options: typed, frozen, and strict about unknown keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

CONTRACT_VERSION = 1
"""Version of `simflow_plugin.contracts`: it grows when a part written for an earlier one would no longer work."""

MomentDecay = Annotated[float, Field(ge=0, lt=1)]
"""A beta of Adam: the decay per step of a running mean."""


class Options(BaseModel):
    """Options of one part. An unknown key is an error: an option without effect is worse than none.

    Numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    contract_version: ClassVar[int | None] = None
    """`CONTRACT_VERSION` that the part was written for; the registry refuses another. None: not stated."""

    def resolved(self) -> Options:
        """Return the options with every default that depends on other options written out.

        Raises:
            ConfigError: if they clash.
        """
        return self

    def check(self, context: Any) -> None:
        """Refuse values that do not fit the run; called before anything is built, and by default refuses nothing.

        Args:
            context: as the part will be built with, as far as the configuration tells: a `ModelContext` for models
                (its number of classes is None), a `PosteriorContext` for posteriors, else a `DataContext`.
        Raises:
            ConfigError: naming the option.
        """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean `x`? Known: a, b, x.' for a name that is not among `known`."""
    choices = sorted(known)
    matches = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean `{matches[0]}`?" if matches else ""
    return f"{hint} Known: {', '.join(choices) if choices else '(none)'}."
