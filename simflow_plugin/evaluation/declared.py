"""The built-in judges by name: options and facts."""

from __future__ import annotations

from simflow_plugin.evaluation.judge_options import DigitsJudgeFacts, EncoderJudgeFacts
from simflow_plugin.registry import JUDGES

JUDGES.declare("digits", "simflow_plugin.evaluation.judges.digits_svc", DigitsJudgeFacts)
JUDGES.declare("encoder", "simflow_plugin.evaluation.judges.pretrained_classifier", EncoderJudgeFacts)
