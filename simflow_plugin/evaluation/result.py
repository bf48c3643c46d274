"""Results of an evaluation: measured numbers with their uncertainty, and the JSON file that holds them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from simflow_plugin.errors import EvaluationError
from simflow_plugin.files import read_json_object, write_text_atomically


def suffix_of(extractor: str) -> str:
    """Return the suffix of metrics in the features of `extractor`: `timm:resnet50@96` gives `resnet50_96`."""
    return re.sub(r"[^a-z0-9]+", "_", extractor.lower().removeprefix("timm:")).strip("_")


@dataclass(frozen=True)
class Measured:
    """A number for a table.

    Args:
        value: the number.
        low: lower end of a 95 % interval, or None.
        high: upper end.
        interval: method of the interval: `bootstrap of 360 images`.
        on: images and settings that it was measured with; numbers with another `on` do not belong into one row.
        draws_error: Monte-Carlo standard error, of the random draws the number is made with, for the same images; None
            where there are none or it is not known.
        warning: reason not to trust it, shown in the table itself; empty if there is none.
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


@dataclass
class Evaluation:
    """Metrics of one setting.

    Args:
        folder: RUN/evaluations/<key>.
        settings: what decides a sample, and where the weights are from.
        metrics: by name.
        details: counts of images, and the judge's own numbers by class.
        notes_by_part: what was left out and why, and what a reader must know, by the part measured (`data` for all).
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Measured] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes_by_part: dict[str, list[str]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """All notes, each once."""
        return list(dict.fromkeys(note for notes in self.notes_by_part.values() for note in notes))

    def note(self, part: str, text: str) -> None:
        """Add a note on one part."""
        self.notes_by_part.setdefault(part, []).append(text)

    def save(self) -> None:
        """Write result.json; numbers of a part measured before stay, with its notes, unless it was measured again."""
        if (self.folder / "result.json").exists():
            before = read_evaluation(self.folder)
            self.metrics = before.metrics | self.metrics
            self.details = before.details | self.details
            self.notes_by_part = before.notes_by_part | self.notes_by_part
        document = {
            "settings": self.settings,
            "metrics": {name: number.to_json() for name, number in self.metrics.items()},
            "details": self.details,
            "notes": self.notes_by_part,
        }
        write_text_atomically(self.folder / "result.json", json.dumps(document, indent=1) + "\n")


def read_evaluation(folder: Path) -> Evaluation:
    """Read a result file.

    Raises:
        EvaluationError: if it is missing or damaged.
    """
    try:
        document = read_json_object(folder / "result.json", EvaluationError)
        metrics = {name: Measured.from_json(values) for name, values in document["metrics"].items()}
        notes = document["notes"]
        by_part = {"data": notes} if isinstance(notes, list) else dict(notes)  # version 0.1.0 wrote a list
        return Evaluation(folder, document["settings"], metrics, document.get("details", {}), by_part)
    except (EvaluationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{folder / 'result.json'}: missing or damaged ({error}). Evaluate the run again."
        ) from error
