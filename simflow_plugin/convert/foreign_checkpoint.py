"""Conversion of a peer's checkpoint file and constructor arguments to a folder with our weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.config.yaml_source import read_yaml_source
from simflow_plugin.contracts import ModelContext
from simflow_plugin.convert.from_ml_starflow import from_ml_starflow
from simflow_plugin.convert.from_ml_tarflow import from_ml_tarflow
from simflow_plugin.convert.from_repa_e import ANCHOR, RepaEArguments, describe_repa_e, from_repa_e
from simflow_plugin.convert.renaming import find_module
from simflow_plugin.convert.saved import save_converted
from simflow_plugin.errors import ConfigError, SimflowError, WeightsError
from simflow_plugin.flow import TransformerFlow
from simflow_plugin.models.sit import SiT
from simflow_plugin.options import did_you_mean
from simflow_plugin.weights import read_tensors

FLOWS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any]], TransformerFlow]] = {
    "ml-starflow": from_ml_starflow,
    "ml-tarflow": from_ml_tarflow,
}
SOURCES = (*FLOWS, "repa-e")


def convert_checkpoint(source: str, checkpoint: Path, config: Path | None, out: Path) -> str:
    """Convert a checkpoint and write it to `out`; return one line about what was written.

    Args:
        source: one of `SOURCES`.
        checkpoint: `.safetensors`, or a file of `torch.save`; tensors are read from it, no code is run.
        config: YAML or JSON, the peer's constructor arguments as a mapping; repa-e can do without.
        out: a folder that is new or empty.
    Raises:
        ConfigError: for an unknown source, or arguments that are unknown, unsupported or malformed.
        WeightsError: if the file is missing, torn, or of another architecture.
        RunDirectoryError: if `out` cannot be written or is not empty.
    """
    if source not in SOURCES:
        raise ConfigError(f"--from: unknown `{source}`.{did_you_mean(source, SOURCES)}")
    if config is None and source in FLOWS:
        raise ConfigError(f"--config: {source} needs its constructor arguments, a mapping in YAML or JSON")
    if checkpoint.is_dir():
        raise WeightsError(
            f"{checkpoint}: is a folder; if it is a distributed (FSDP) checkpoint, join it into one file first: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    arguments = {} if config is None else read_yaml_source(str(config)).values
    # Training checkpoints of the REPA-E host hold their command line: an argparse.Namespace has no behaviour.
    with torch.serialization.safe_globals([argparse.Namespace]):
        tensors = read_tensors(checkpoint)
    try:
        module, context = _converted(source, tensors, arguments)
        save_converted(module, out, context)
    except ConfigError as error:
        raise ConfigError(f"{config or checkpoint}: {error}") from error
    except SimflowError as error:
        # The converters know tensors, not files.
        raise type(error)(f"{checkpoint}: {error}") from error
    kind = "flow" if source in FLOWS else "SiT"
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{out}: a {kind} of {count:,} parameters from {source}"


def _converted(
    source: str, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> tuple[TransformerFlow | SiT, ModelContext | None]:
    if source in FLOWS:
        return FLOWS[source](tensors, arguments), None
    found = find_module(tensors, source, ANCHOR)
    options, context = describe_repa_e(found, RepaEArguments.parse(arguments))
    return from_repa_e(found, options, context), context
