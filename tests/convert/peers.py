"""The peers: their committed numbers, their checkouts imported side by side, and weights worth comparing."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from simflow_plugin.flow import TransformerFlow, patchify

FIXTURES = Path(__file__).parents[1] / "fixtures"
TOLERANCE = 1e-4


def read_parts(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the constructor arguments of a fixture of a flow, and its tensors by the first word of their names."""
    parts: dict[str, dict[str, Tensor]] = {}
    with safe_open(FIXTURES / f"{name}.safetensors", framework="pt") as file:
        config = json.loads((file.metadata() or {}).get("config", "{}"))
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = file.get_tensor(key)
    return config, parts


class Case:
    """A fixture of a flow of a peer, and our flow with its weights."""

    def __init__(self, name: str, convert: Callable[..., TransformerFlow]) -> None:
        self.config, parts = read_parts(name)
        self.weights, self.inputs, self.outputs = parts["peer"], parts["inputs"], parts["outputs"]
        self.flow = convert(self.weights, self.config)
        self.patch_size = self.config["patch_size"]

    def cut(self, images: Tensor) -> Tensor:
        return patchify(images, self.patch_size)


def import_from(variable: str, name: str) -> ModuleType:
    """Import a module of the checkout that an environment variable names; skip the test without.

    Peers share names of modules: those of one checkout are gone from `sys.modules` afterwards.
    """
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set to a checkout")
    tops = {path.stem for path in Path(folder).iterdir()}
    hidden = {loaded: sys.modules.pop(loaded) for loaded in list(sys.modules) if loaded.split(".")[0] in tops}
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
        for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] in tops]:
            del sys.modules[loaded]
        sys.modules.update(hidden)


def randomize(model: nn.Module, seed: int, std: float = 0.15) -> None:
    """Draw every parameter, so that no block is the identity and no norm or bias is at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.02 if "proj_out" in name else std / max(1.0, parameter.shape[-1] / 64) ** 0.5
            noise = torch.randn(parameter.shape, generator=generator) * spread
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(parameter + noise if is_norm else noise)


def condition_by_adaln(peer: ModuleType, model: nn.Module, config: dict[str, Any]) -> None:
    """Put ml-starflow's own adaLN layers into the blocks of its `Model` that see the text, which is then their c."""

    class Conditioned(peer.AttentionBlock):
        vector: Tensor | None = None

        def forward(self, x: Any, y: Any = None, attn_mask: Any = None, attn_temp: float = 1.0, c: Any = None,
                    freqs_cis: Any = None, kv_cache: Any = None, **checkpoints: Any) -> Any:  # fmt: skip
            self.vector = self.vector if y is None else y
            if x is None:  # the peer's pass over the text: adaLN has none
                return None, y
            x, _ = super().forward(x, None, attn_mask, attn_temp, self.vector, freqs_cis[1:], kv_cache)
            return x, y

    layer = "use_swiglu norm_type num_heads num_kv_heads use_qk_norm use_post_norm use_bias hf_style_rope"
    options = {name: config[name] for name in layer.split() if name in config}
    for block in model.blocks:
        if block.txt_dim:
            block.attn_blocks = nn.ModuleList(
                Conditioned(config["channels"], config["head_dim"], use_adaln=True, **options)
                for _ in block.attn_blocks
            )


def largest(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference; shapes must agree."""
    assert first.shape == second.shape
    assert bool(torch.isfinite(first).all())
    return float((first - second).abs().max())
