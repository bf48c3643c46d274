"""Options of the judges of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import Field

from simflow_plugin.errors import ConfigError
from simflow_plugin.local_paths import LocalPath
from simflow_plugin.options import Options
from simflow_plugin.registry import JUDGES


class DigitsJudgeOptions(Options):
    """The judge has none."""


class EncoderJudgeOptions(Options):
    """Options of the judge `encoder`: a classifier of `simflow pretrain-encoder`."""

    checkpoint: LocalPath = Field(description="file made by `simflow pretrain-encoder`")
    num_real: int = Field(
        2000, ge=2, description="held-out images, drawn at random, for the judge's own accuracy"
    )


class JudgeFacts(Protocol):
    """Facts of a judge that configurations are checked against."""

    Options: ClassVar[type[Options]]

    data: ClassVar[str | None] = None
    """Name of the only data set that it judges; None: any with labels."""

    num_classes: ClassVar[int | None] = None
    """Number of classes that it knows whatever its options; None: its files state it."""

    @classmethod
    def check_files(cls, options: Any, data: str) -> None:
        """Refuse a missing file before a run on the data set `data` (by name) trains.

        Raises:
            ConfigError: naming the key, the file, and how to make it.
        """


@JUDGES.declare("digits", "simflow_plugin.evaluation.judges.digits_svc")
class DigitsJudgeFacts(JudgeFacts):
    """Facts of `judge: digits`."""

    Options: ClassVar[type[Options]] = DigitsJudgeOptions
    data = "digits"
    num_classes = 10


@JUDGES.declare("encoder", "simflow_plugin.evaluation.judges.pretrained_classifier")
class EncoderJudgeFacts(JudgeFacts):
    """Facts of `judge: encoder`."""

    Options: ClassVar[type[Options]] = EncoderJudgeOptions

    @classmethod
    def check_files(cls, options: EncoderJudgeOptions, data: str) -> None:
        if not Path(options.checkpoint).expanduser().is_file():
            raise ConfigError(
                f"evaluation.judge.checkpoint: {options.checkpoint}: no such file. Make it with `simflow "
                f"pretrain-encoder --data {data} --out {options.checkpoint}`, or set evaluation.judge: none (and "
                "judge_checkpoint: null)."
            )
