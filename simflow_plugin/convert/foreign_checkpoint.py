"""Conversion of a peer's checkpoint file and constructor arguments to a folder with our weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from simflow_plugin.config.yaml_source import read_yaml_source
from simflow_plugin.convert.arguments import PeerConstructor
from simflow_plugin.convert.from_ml_starflow import from_ml_starflow
from simflow_plugin.convert.from_ml_tarflow import from_ml_tarflow
from simflow_plugin.convert.from_repa_e import describe_repa_e, from_repa_e
from simflow_plugin.convert.renaming import find_module
from simflow_plugin.convert.saved import save_converted
from simflow_plugin.errors import ConfigError, SimflowError, WeightsError
from simflow_plugin.options import Options, did_you_mean
from simflow_plugin.weights import read_tensors

FLOWS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any]], Any]] = {
    "ml-starflow": from_ml_starflow,
    "ml-tarflow": from_ml_tarflow,
}
SOURCES = (*FLOWS, "repa-e")


class RepaEArguments(Options):
    """Arguments of the host's `SiT` that its weights do not show."""

    num_heads: int | None = Field(None, gt=0)
    path_type: Literal["linear", "cosine"] = "linear"
    encoder_depth: int = Field(8, gt=0)
    num_classes: int | None = Field(None, gt=0)


REPA_E = PeerConstructor(
    "repa-e",
    RepaEArguments,
    # Read off the weights' shapes, or without a part in inference.
    ignored=frozenset(
        {
            "input_size",
            "patch_size",
            "in_channels",
            "hidden_size",
            "decoder_hidden_size",
            "depth",
            "mlp_ratio",
        }
        | {
            "class_dropout_prob",
            "use_cfg",
            "z_dims",
            "projector_dim",
            "bn_momentum",
            "qk_norm",
        }
        | {"fused_attn"}
    ),
    refused={},
)


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
    with _allowing(argparse.Namespace):
        tensors = read_tensors(checkpoint)
    try:
        if source in FLOWS:
            flow = FLOWS[source](tensors, arguments)
            save_converted(flow, out)
            return f"{out}: a flow of {flow.num_parameters():,} parameters from {source}"
        host = REPA_E.parse(arguments)
        found = find_module(tensors, source, anchor="x_embedder.proj.weight")
        options, context = describe_repa_e(
            found, host.num_heads, host.path_type, host.encoder_depth, host.num_classes
        )
        sit = from_repa_e(found, options, context)
        save_converted(sit, out, context)
        return f"{out}: a SiT of {sum(p.numel() for p in sit.parameters()):,} parameters from {source}"
    except ConfigError as error:
        raise ConfigError(f"{config or checkpoint}: {error}") from error
    except SimflowError as error:
        # The converters know tensors, not files.
        raise type(error)(f"{checkpoint}: {error}") from error


def _allowing(*kinds: type) -> AbstractContextManager[Any]:
    """Let `torch.load(weights_only=True)` build objects of these classes (torch 2.5 and later)."""
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if safe_globals is None else safe_globals(list(kinds))
