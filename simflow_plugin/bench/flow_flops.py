"""Minimum FLOPs of a training step and of a sampling run of the flow, from its configuration.

A multiply-add is 2 FLOPs. Only matrix products count: linear maps and attention (causal: position s sees s keys).
A method that evaluates more positions (Jacobi) is still charged this minimum, so that all methods of a table are
on one scale: the fraction of GEMM speed is (minimum / time) / (GEMM FLOP/s).
"""

from __future__ import annotations

from simflow_plugin.flow import FlowConfig


def forward_flops(config: FlowConfig, prefix_length: int, guided: bool = False) -> int:
    """Return the FLOPs of one row through all blocks, which is also the least that sampling it takes.

    Args:
        prefix_length: condition tokens in front, in conditional blocks.
        guided: count conditional blocks twice.
    """
    total = 0
    for index in range(config.num_blocks):
        is_conditional = config.conditional_blocks == "all" or index == config.num_blocks - 1
        has_condition = config.num_classes is not None or config.condition_dim is not None
        passes = 2 if guided and is_conditional and has_condition else 1
        total += passes * block_flops(config, index, prefix_length if is_conditional else 0)
    return total


def training_flops(config: FlowConfig, prefix_length: int) -> int:
    """Return the FLOPs of one row forward and backward; the backward pass costs two forward ones."""
    return 3 * forward_flops(config, prefix_length)


def block_flops(config: FlowConfig, index: int, prefix_length: int) -> int:
    """Return the FLOPs of one row through block `index` (from 0, in training order)."""
    query_dim, key_dim = config.query_heads * config.head_dim, config.key_heads * config.head_dim
    gate_dim = query_dim if config.gated_attention else 0
    inner = int(config.width * config.mlp_ratio)
    num_mlp_maps = 2 if config.mlp == "gelu" else 3
    weights = config.width * (query_dim + 2 * key_dim + gate_dim + query_dim + num_mlp_maps * inner)
    num_positions = prefix_length + config.num_tokens
    num_pairs = num_positions * (num_positions + 1) // 2
    layer = 2 * weights * num_positions + 4 * query_dim * num_pairs
    halves = 1 if config.scale == "unit" else 2
    ends = 2 * config.width * config.token_dim * (1 + halves) * config.num_tokens
    return config.layers_per_block[index] * layer + ends
