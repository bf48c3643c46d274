"""`naive`: the whole network again for every token, without a cache; slow, and hard to get wrong."""

from __future__ import annotations

import torch

from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.sampling.state import BlockState


def solve_naively(state: BlockState) -> None:
    """Fill in `state.tokens`."""
    block = state.block
    for step in range(state.num_steps):
        inputs = state.tokens[:, block.lag : step + 1 + block.lag]
        if state.guidance is not None:
            inputs = torch.cat([inputs, inputs])
        hidden = block.embed_inputs(inputs, 0, state.embedding)
        if state.embedding.prefix is not None:
            hidden = torch.cat([state.embedding.prefix, hidden], dim=1)
        turn = None if state.rotation is None else state.rotation[: hidden.shape[1]]
        for layer in block.layers:
            hidden = layer(hidden, turn)
        affine: Affine = block.head(hidden[:, -1:])
        state.store(state.targets(affine, step, step + 1), step)
        state.statistics.passes += 1
        state.statistics.steps += step + 1
