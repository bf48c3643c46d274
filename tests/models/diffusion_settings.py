"""Small models of SiT and DiT that do not predict zero, the shape of their latents, and every sampler."""

from typing import Any

import pytest
import torch

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.registry import MODELS

BACKBONE = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
SHAPE = (3, 4, 4)
SAMPLINGS = [
    ("sit", {"method": "euler"}),
    ("sit", {"method": "heun"}),
    ("sit", {"method": "euler_maruyama"}),
    ("dit", {"eta": 0.0}),
    ("dit", {"eta": 1.0}),
]
every_model = pytest.mark.parametrize("name", ["sit", "dit"])
every_sampler = pytest.mark.parametrize(("name", "sampling"), SAMPLINGS)


def build(
    name: str,
    sampling: dict[str, Any] | None = None,
    alignment_layer: int | None = None,
    num_classes: int | None = 5,
    **options: Any,
) -> Any:
    """Return a model that samples in four steps."""
    alignment = AlignmentContext(6, alignment_layer, 8) if alignment_layer is not None else None
    factory = MODELS.get(name)
    mapping = {"backbone": BACKBONE, "sampling": {"num_steps": 4, **(sampling or {})}, **options}
    model = factory(factory.Options.model_validate(mapping), ModelContext(SHAPE, num_classes, alignment))
    for parameter in model.parameters():  # away from the start at zero, where every prediction is zero
        torch.nn.init.normal_(parameter, std=0.1)
    return model
