"""Converted weights on disk: a folder with the tensors (safetensors) and the configuration that builds their module.

`flow.safetensors` with `flow.json` (a `FlowConfig`) is a flow; `sit.safetensors` with `sit.json` is a SiT.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save_file

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.convert.arguments import describe
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.files import filling, read_json_object
from simflow_plugin.flow import FlowConfig, TransformerFlow
from simflow_plugin.models.sit import SiT, SiTOptions
from simflow_plugin.options import Options, Size
from simflow_plugin.weights import load_strictly, read_tensors


class SavedSiT(Options):
    """Content of `sit.json`."""

    options: SiTOptions
    latent_shape: tuple[Size, Size, Size]
    num_classes: int | None
    alignment: AlignmentContext | None

    def build(self) -> SiT:
        return SiT(self.options, ModelContext(self.latent_shape, self.num_classes, self.alignment))


def save_converted(module: TransformerFlow | SiT, folder: Path, context: ModelContext | None = None) -> None:
    """Write a converted module in one piece.

    Args:
        module: a flow or a SiT.
        folder: new or empty.
        context: of a SiT, which does not keep it.
    Raises:
        RunDirectoryError: if the folder exists and is not empty, or cannot be written.
    """
    description: Options
    if isinstance(module, TransformerFlow):
        kind, description = "flow", module.config
    elif isinstance(module, SiT) and context is not None:
        shape, classes, alignment = context.latent_shape, context.num_classes, context.alignment
        kind, description = (
            "sit",
            SavedSiT(options=module.options, latent_shape=shape, num_classes=classes, alignment=alignment),
        )
    else:
        raise TypeError(
            f"expected a TransformerFlow, or a SiT with its context, found {type(module).__name__}"
        )
    with filling(folder) as part:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(tensors, part / f"{kind}.safetensors")
        (part / f"{kind}.json").write_text(
            json.dumps(description.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8"
        )


def load_converted(folder: Path | str) -> TransformerFlow | SiT:
    """Read what `save_converted` (or `simflow convert`) wrote, in evaluation mode.

    Raises:
        WeightsError: if a file is missing, torn, or its tensors do not fit the configuration.
        ConfigError: if the configuration is not one.
    """
    kinds = [kind for kind in ("flow", "sit") if Path(folder, f"{kind}.json").is_file()]
    if len(kinds) != 1:
        raise WeightsError(f"{folder}: expected flow.json or sit.json, found {kinds or 'neither'}")
    file = Path(folder, f"{kinds[0]}.json")
    try:
        description = read_json_object(file, ConfigError)
        if kinds == ["flow"]:
            module: TransformerFlow | SiT = TransformerFlow(FlowConfig.model_validate(description))
        else:
            module = SavedSiT.model_validate(description).build()
    except ValidationError as error:
        raise ConfigError(f"{file}: {describe(error)}") from error
    weights = file.with_suffix(".safetensors")
    load_strictly(module, read_tensors(weights), str(weights), "Convert again.")
    return module.eval()
