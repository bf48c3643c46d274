"""Converted weights on disk: a folder with the tensors (safetensors) and the configuration that builds their module.

`flow.safetensors` with `flow.json` (a `FlowConfig`) is a flow; `sit.safetensors` with `sit.json` is a SiT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.convert.arguments import describe
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.files import filling, read_json_object
from simflow_plugin.flow import FlowConfig, TransformerFlow
from simflow_plugin.models.sit import SiT, SiTOptions
from simflow_plugin.weights import load_strictly, read_tensors


def save_converted(module: TransformerFlow | SiT, folder: Path, context: ModelContext | None = None) -> None:
    """Write a converted module in one piece.

    Args:
        module: a flow or a SiT.
        folder: new or empty.
        context: of a SiT, which does not keep it.
    Raises:
        RunDirectoryError: if the folder exists and is not empty, or cannot be written.
    """
    kind, description = _describe(module, context)
    with filling(folder) as part:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(tensors, part / f"{kind}.safetensors")
        (part / f"{kind}.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_converted(folder: Path | str) -> TransformerFlow | SiT:
    """Read what `save_converted` (or `simflow convert`) wrote, in evaluation mode.

    Raises:
        WeightsError: if a file is missing, torn, or its tensors do not fit the configuration.
        ConfigError: if the configuration is not one.
    """
    folder = Path(folder)
    kinds = [kind for kind in ("flow", "sit") if (folder / f"{kind}.json").is_file()]
    if len(kinds) != 1:
        raise WeightsError(f"{folder}: expected flow.json or sit.json, found {kinds or 'neither'}")
    kind = kinds[0]
    weights = folder / f"{kind}.safetensors"
    try:
        description = read_json_object(folder / f"{kind}.json", ConfigError)
        module = _build(kind, description)
    except ValidationError as error:
        raise ConfigError(f"{folder / f'{kind}.json'}: {describe(error)}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{folder / f'{kind}.json'}: is not the configuration of a {kind}: {error!r}"
        ) from error
    load_strictly(module, read_tensors(weights), str(weights), "Convert again.")
    return module.eval()


def _describe(module: nn.Module, context: ModelContext | None) -> tuple[str, dict[str, Any]]:
    if isinstance(module, TransformerFlow):
        return "flow", module.config.model_dump(mode="json")
    if not isinstance(module, SiT) or context is None:
        raise TypeError(
            f"expected a TransformerFlow, or a SiT with its context, found {type(module).__name__}"
        )
    return "sit", {
        "options": module.options.model_dump(mode="json"),
        "latent_shape": list(context.latent_shape),
        "num_classes": context.num_classes,
        "alignment": None if context.alignment is None else asdict(context.alignment),
    }


def _build(kind: str, description: Mapping[str, Any]) -> TransformerFlow | SiT:
    if kind == "flow":
        return TransformerFlow(FlowConfig.model_validate(description))
    alignment = description["alignment"]
    channels, height, width = description["latent_shape"]
    context = ModelContext(
        (channels, height, width),
        description["num_classes"],
        None if alignment is None else AlignmentContext(**alignment),
    )
    return SiT(SiTOptions.model_validate(description["options"]), context)
