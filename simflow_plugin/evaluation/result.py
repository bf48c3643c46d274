"""The result of an evaluation, in one JSON file that later evaluations of the same setting add to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.measured import Measured
from simflow_plugin.files import write_text_atomically


@dataclass
class Evaluation:
    """What was measured of one setting.

    Args:
        folder: RUN/evaluations/<key>.
        settings: what decides a sample, and where the weights are from.
        metrics: by name.
        notes: what was left out, and why.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Measured] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Write result.json; numbers measured before stay where they were not measured again."""
        metrics, notes = self.metrics, self.notes
        if (self.folder / "result.json").exists():
            before = read_evaluation(self.folder)
            metrics, notes = before.metrics | self.metrics, list(dict.fromkeys(before.notes + self.notes))
        document = {
            "settings": self.settings,
            "metrics": {name: number.to_json() for name, number in metrics.items()},
            "notes": notes,
        }
        write_text_atomically(self.folder / "result.json", json.dumps(document, indent=1) + "\n")


def read_evaluation(folder: Path) -> Evaluation:
    """Read a result file.

    Raises:
        EvaluationError: if it is missing or damaged.
    """
    try:
        document = json.loads((folder / "result.json").read_text())
        metrics = {name: Measured.from_json(values) for name, values in document["metrics"].items()}
        return Evaluation(folder, document["settings"], metrics, document["notes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{folder / 'result.json'}: missing or damaged ({error}). Evaluate the run again."
        ) from error
