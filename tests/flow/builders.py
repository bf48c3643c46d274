"""Small flows with weights that are not the identity, and inputs that fit them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.flow import FlowConfig, TransformerFlow

CHOICES = {
    "family": st.sampled_from(["starflow", "tarflow"]),
    "positions": st.sampled_from(["rope", "learned"]),
    "scale": st.sampled_from(["softplus", "exp", "unit"]),
    "norm": st.sampled_from(["layer", "rms"]),
    "mlp": st.sampled_from(["gelu", "swiglu", "geglu"]),
    "first_order": st.sampled_from(["identity", "flip"]),
    **{name: st.booleans() for name in ("start_token", "post_norm", "final_norm", "qk_norm")},
    **{name: st.booleans() for name in ("gated_attention", "bias")},
}
"""Options of an architecture that are free of each other."""


def build_flow(dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> TransformerFlow:
    """Return a tiny flow of random weights, far enough from the identity to show a mistake."""
    values = {"width": 16, "layers_per_block": (1, 1, 2), "head_dim": 8, "token_dim": 3, "grid_size": (2, 3)}
    torch.manual_seed(seed)
    flow = TransformerFlow(FlowConfig(**(values | options)))
    for name, parameter in flow.named_parameters():
        if "norm" not in name and "scale" not in name:
            torch.nn.init.normal_(parameter, std=0.02 if name.endswith("proj_out.weight") else 0.3)
    return flow.to(dtype).eval()


def inputs_for(flow: TransformerFlow, rows: int = 3, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Return tokens and the keyword arguments of the condition that this flow takes."""
    config, dtype = flow.config, next(flow.parameters()).dtype
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    tokens = draw(rows, config.num_tokens, config.token_dim)
    if config.num_classes is not None:
        labels = torch.arange(rows) % config.num_classes
        labels[-1] = NO_LABEL
        return tokens, {"labels": labels}
    if config.condition_dim is not None:
        return tokens, {"condition": draw(rows, config.condition_length or 2, config.condition_dim)}
    return tokens, {}
