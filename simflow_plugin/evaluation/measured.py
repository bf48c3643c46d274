"""One measured number: its value, its uncertainty, how it was measured, and what makes it doubtful."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Measured:
    """A number for a table.

    Args:
        value: the number.
        low: lower end of a 95 % interval, or None.
        high: upper end.
        interval: where the interval comes from: `bootstrap of 360 images`.
        on: what it was measured on and with; numbers with another `on` do not belong into one row of a table.
        draws_error: Monte-Carlo standard error, of the random draws the number is made with, for the same images; None
            where there are none or it is not known.
        warning: why it should not be trusted; shown in the table itself. Empty if nothing is wrong.
    """

    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    on: str = ""
    warning: str = ""
    draws_error: float | None = None

    def with_notes(self, on: str = "", warning: str = "") -> Measured:
        """Return the number with what it was measured on, and one more warning."""
        warnings = "; ".join(filter(None, (self.warning, warning)))
        return replace(self, on=on or self.on, warning=warnings)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measured:
        """Read a number back; keys of a newer version are ignored."""
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})
