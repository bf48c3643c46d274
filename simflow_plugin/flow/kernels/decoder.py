"""A block ready for the compiled decode step: weights packed, addresses collected, buffers allocated."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.flow import adaln
from simflow_plugin.flow.adaln import AdaLN, LayerModulation
from simflow_plugin.flow.attention.backend_choice import AutoAttention
from simflow_plugin.flow.attention.sdpa import SdpaAttention
from simflow_plugin.flow.block import FlowBlock
from simflow_plugin.flow.conditioning import Embedding, FeatureEmbedding, LabelEmbedding
from simflow_plugin.flow.kernels.library import (
    BlockParts,
    LayerParts,
    LinearMap,
    Modulation,
    Norm,
    find_library,
)
from simflow_plugin.flow.kv_cache import LayerCache
from simflow_plugin.flow.layers import RMS_EPS, CausalAttention, GatedActivation, Layer, Mlp, RmsNorm
from simflow_plugin.flow.matrix_product import Linear

MAX_ROWS = 64
"""Above, a step is bound by arithmetic, where oneDNN is at home."""

ACTIVATIONS = {"gelu": 0, "swiglu": 1, "geglu": 2}


KNOWN_MODULES = {
    *(
        FlowBlock,
        Layer,
        CausalAttention,
        Mlp,
        GatedActivation,
        Linear,
        RmsNorm,
        LabelEmbedding,
        FeatureEmbedding,
        AdaLN,
    ),
    *(nn.ModuleList, nn.Linear, nn.LayerNorm, nn.GELU, nn.Identity),
}
"""Modules that the kernel computes; a module that someone put in the place of one of these runs as torch runs it."""


def why_not_native(block: FlowBlock, rows: int) -> str | None:
    """Return why the compiled step cannot stand for this block, or None if it can."""
    for name, module in block.named_modules():
        if type(module) not in KNOWN_MODULES or module._forward_hooks or module._forward_pre_hooks:
            return f"{name} ({type(module).__name__}) is not a plain module of a flow"
        if isinstance(module, nn.GELU) and module.approximate != "none":
            return f"{name} (GELU, approximate={module.approximate}) is not the exact one"
        if isinstance(module, CausalAttention) and type(module.backend) not in (SdpaAttention, AutoAttention):
            return f"it is made for the attention backend sdpa, found {type(module.backend).__name__}"
    for name, parameter in block.named_parameters():
        if type(parameter) is not nn.Parameter or (parameter.dtype, parameter.device.type) != (
            torch.float32,
            "cpu",
        ):
            return (
                f"it is made for float32 on the CPU, found {name} in {parameter.dtype} on {parameter.device}"
            )
    if torch.is_autocast_enabled("cpu"):
        return "it is made for float32, found autocast"
    if rows > MAX_ROWS:
        return f"it is made for up to {MAX_ROWS} rows, found {rows}"
    return None if find_library() is not None else "the kernel could not be compiled, see the log"


class Decoder:
    """The steps of one block over a cache, by the compiled library; numbers are those of `FlowBlock` in float32.

    Args:
        block: see `why_not_native`; it is not changed.
        cache: of the layers, (rows, key heads, S, d) each; read and written.
        rotation: complex (S, d / 2) of all positions, or None.
        embedding: the condition of the rows.
    """

    def __init__(
        self, block: FlowBlock, cache: Sequence[LayerCache], rotation: Tensor | None, embedding: Embedding
    ) -> None:
        library = find_library()
        assert library is not None, "see why_not_native"
        self._library = library
        self._kept: list[Tensor] = []  # the library holds addresses: what is behind them must live as long
        config = block.config
        rows, _, capacity, _ = cache[0].keys.shape
        padded_rows = _padded(rows, library.row_unit)
        layers = [
            self._layer(layer, modulation, part)  # type: ignore[arg-type]
            for (layer, modulation), part in zip(block.modulated_layers(embedding), cache, strict=True)
        ]
        self._parts = BlockParts(
            rows=rows,
            width=config.width,
            query_heads=config.query_heads,
            key_heads=config.key_heads,
            head_dim=config.head_dim,
            is_gated=config.gated_attention,
            activation=ACTIVATIONS[config.mlp],
            capacity=capacity,
            num_layers=len(layers),
            num_threads=torch.get_num_threads(),
            qk_eps=RMS_EPS,
            layers=(LayerParts * len(layers))(*layers),
            in_=self._linear(block.proj_in.weight, block.proj_in.bias),
            out=self._linear(block.proj_out.weight, block.proj_out.bias),
            final_norm=self._norm(block.final_norm),
            rotation=None if rotation is None else self._keep(torch.view_as_real(rotation)),
            positions=self._keep(block.position_rows(0, config.num_tokens)),
            added=self._keep(embedding.added),
        )
        self._reference = ctypes.byref(self._parts)
        self._parts.scratch = self._keep(_zeros(library.scratch_size(self._reference)))
        self._inputs = _zeros(padded_rows, config.token_dim)
        outputs = block.proj_out.out_features
        raw = _zeros(padded_rows, _padded(outputs, library.panel))
        self._used_inputs, self._raw = self._inputs[:rows, None], raw[:rows, None, :outputs]
        self._addresses = self._inputs.data_ptr(), raw.data_ptr()

    def __call__(self, inputs: Tensor, step: int, slot: int) -> Tensor:
        """Run one step; the cache holds all positions before `slot`.

        Args:
            inputs: (rows, 1, D).
            step: of the block.
            slot: its position in the cache, behind the prefix.

        Returns:
            The block's raw output (rows, 1, 2 D or D); overwritten by the next call.
        """
        self._used_inputs.copy_(inputs)
        source, target = self._addresses
        self._library.decode(self._reference, source, step, slot, target)
        return self._raw

    def _layer(self, layer: Layer, vectors: LayerModulation | None, cache: LayerCache) -> LayerParts:
        attention, mlp = layer.attention, layer.mlp
        is_gated = isinstance(mlp.activation, GatedActivation)
        halves = mlp.up.weight.chunk(2) if is_gated else (mlp.up.weight,)
        biases: Sequence[Any] = (None, None) if mlp.up.bias is None else mlp.up.bias.chunk(len(halves))
        return LayerParts(
            qkv=self._linear(attention.qkv.weight, attention.qkv.bias),
            proj=self._linear(attention.proj.weight, attention.proj.bias),
            up=self._linear(halves[0], biases[0]),
            value=self._linear(halves[1], biases[1]) if is_gated else LinearMap(),
            down=self._linear(mlp.down.weight, mlp.down.bias),
            attention_norm=self._norm(layer.attention_norm),
            attention_post_norm=self._norm(layer.attention_post_norm),
            mlp_norm=self._norm(layer.mlp_norm),
            mlp_post_norm=self._norm(layer.mlp_post_norm),
            attention_modulation=self._modulation(None if vectors is None else vectors.attention),
            mlp_modulation=self._modulation(None if vectors is None else vectors.mlp),
            query_scale=self._keep(attention.query_scale),
            key_scale=self._keep(attention.key_scale),
            keys=self._keep(cache.keys),
            values=self._keep(cache.values),
        )

    def _linear(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Pack a weight (N, K) in panels [panel][input][output in panel]."""
        panel = self._library.panel
        outputs, inputs = weight.shape
        missing = _padded(outputs, panel) - outputs
        padded = nn.functional.pad(weight.detach(), (0, 0, 0, missing)) if missing else weight.detach()
        packed = padded.view(-1, panel, inputs).transpose(1, 2)
        padded_bias = None if bias is None else nn.functional.pad(bias.detach(), (0, missing))
        return LinearMap(
            weight=self._keep(packed), bias=self._keep(padded_bias), inputs=inputs, outputs=outputs
        )

    def _norm(self, norm: nn.Module) -> Norm:
        if isinstance(norm, nn.Identity):
            return Norm()
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        kind = 1 if isinstance(norm, nn.LayerNorm) else 2
        return Norm(weight=self._keep(norm.weight), bias=self._keep(bias), kind=kind, eps=norm.eps)

    def _modulation(self, vectors: adaln.Modulation | None) -> Modulation:
        if vectors is None:
            return Modulation()
        shift, scale, gate = map(self._keep, vectors)
        return Modulation(shift=shift, scale=scale, gate=gate)

    def _keep(self, tensor: Tensor | None) -> int | None:
        """Keep a contiguous tensor alive; return its address, at which the library reads float32; None of None."""
        if tensor is None:
            return None
        kept = tensor.detach().contiguous()
        assert (kept.dtype, kept.device.type) == (torch.float32, "cpu"), (kept.dtype, kept.device)
        self._kept.append(kept)
        return kept.data_ptr()


def _zeros(*shape: int) -> Tensor:
    """Return zeros as the library takes them, whatever the process's default type and device."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _padded(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit
