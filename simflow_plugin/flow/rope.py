"""Rotary positions in two dimensions, with a third axis for a condition sequence in front of the tokens.

A head of d channels holds d / 2 pairs (channels 2i, 2i + 1); pair i of a token at (row, column) turns by
row f_i for the first half of the pairs and by column f_i for the second. With a condition sequence, the last
`condition_frequencies` pairs turn by the position in that sequence, where image tokens are at 0.
Reference: RoFormer, arXiv:2104.09864; the layout is that of STARFlow, arXiv:2506.06276.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from simflow_plugin.flow.architecture import FlowConfig


def rotation_table(config: FlowConfig, num_prefix: int, like: Tensor) -> Tensor | None:
    """Return exp(i angle), complex (num_prefix + T, head_dim / 2), or None for a flow with learned positions.

    A table is a function of the step in a block's own order, so it is the same for flipped blocks.

    Args:
        num_prefix: condition tokens in front of the image tokens.
        like: its device, and its precision if that is float64 (else float32), are the table's.
    """
    if config.positions != "rope":
        return None
    dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    # Kept per device: built on the CPU, and copied once.
    make = _build if isinstance(like, FakeTensor) else _kept
    return make(config, num_prefix, like.device, dtype)


def _build(config: FlowConfig, num_prefix: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Angles in float64: a table is small, and float32 products of positions lose digits.
    height, width = config.grid_size
    own_side = (height * width) ** 0.5
    side = config.rope_side if config.rope_side is not None else own_side
    num_condition = config.condition_frequencies if config.condition_dim is not None else 0
    pairs_per_axis = (config.head_dim // 2 - num_condition) // 2

    count = functools.partial(torch.arange, dtype=torch.float64, device="cpu")
    exponents = count(pairs_per_axis) / max(pairs_per_axis, 1)
    frequencies = config.rope_theta**-exponents
    rows = (count(height) * (side / own_side)).repeat_interleave(width)
    columns = (count(width) * (side / own_side)).repeat(height)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)  # (T, pairs)
    angles = torch.nn.functional.pad(angles, (0, num_condition, num_prefix, 0))
    if num_condition and num_prefix:
        sequence = count(num_prefix) * (side / num_prefix)
        exponents = count(num_condition) / num_condition
        angles[:num_prefix, -num_condition:] = sequence[:, None] * config.rope_theta**-exponents
    table = torch.polar(torch.ones_like(angles), angles).to(dtype)
    # From pinned memory even the first forward pass need not wait for the copy.
    if device.type == "cuda" and not isinstance(table, FakeTensor):
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # a table that sampling made serves training too
def _kept(config: FlowConfig, num_prefix: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return _build(config, num_prefix, device, dtype)


def rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Turn the channel pairs of `heads` (B, n, H, d) by `rotation`, complex (n, d / 2), a row a position."""
    turn = rotation[:, None]  # (n, 1, d / 2)
    if heads.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)
    # Half precision has no complex type, and the compiler fuses real arithmetic but not complex.
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * turn.real - odd * turn.imag, even * turn.imag + odd * turn.real], dim=-1)
    return turned.flatten(-2).to(heads.dtype)
