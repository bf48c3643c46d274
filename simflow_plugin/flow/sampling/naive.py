"""`naive`: the network over all tokens again for every token, without a cache: the slow reference."""

from __future__ import annotations

import torch

from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.sampling.decode_state import BlockState, join_rows


def solve_naively(state: BlockState) -> None:
    """Fill in `state.tokens`."""
    for step in range(state.num_steps):
        affine = _evaluate(state, step)
        if state.guide is not None:
            affine = join_rows(affine, _evaluate(state.guide, step))
        state.store(state.targets(affine, step, step + 1), step)
        state.count(step + 1)


def _evaluate(state: BlockState, step: int) -> Affine:
    """Return the parameters (rows, 1, D) of one step, from all inputs up to it."""
    block = state.block
    hidden = block.embed_inputs(state.inputs(0, step + 1), block.position_rows(0, step + 1), state.embedding)
    if state.embedding.prefix is not None:
        hidden = torch.cat([state.embedding.prefix, hidden], dim=1)
    turn = None if state.rotation is None else state.rotation[: hidden.shape[1]]
    hidden = block.run_layers(hidden, turn, state.embedding, [None] * len(block.layers), 0)
    return block.head(hidden[:, -1:])
