"""Activation checkpointing changes memory, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.flow import TransformerFlow
from tests.flow.builders import build_flow, inputs_for


def saved_bytes(flow: TransformerFlow, tokens: Tensor) -> int:
    """Return the bytes of distinct activations that the backward pass keeps; parameters do not count."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in flow.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = flow(tokens)
    assert output.logdet.requires_grad
    return sum(sizes.values())


def test_checkpointing_keeps_at_most_half_of_the_activations() -> None:
    options = {"layers_per_block": (2, 4), "grid_size": (4, 4)}
    plain, checkpointed = (build_flow(activation_checkpointing=is_on, **options) for is_on in (False, True))
    tokens, _ = inputs_for(plain)
    assert saved_bytes(checkpointed, tokens) <= saved_bytes(plain, tokens) / 2


@pytest.mark.parametrize("options", [{}, {"num_classes": 3, "class_conditioning": "adaln"}], ids=str)
def test_checkpointing_leaves_values_and_gradients(options: dict[str, Any]) -> None:
    plain, checkpointed = (build_flow(activation_checkpointing=is_on, **options) for is_on in (False, True))
    tokens, condition = inputs_for(plain)
    log_probs = [flow.log_prob(tokens, **condition) for flow in (plain, checkpointed)]
    assert torch.equal(*log_probs)
    for log_prob in log_probs:
        log_prob.sum().backward()
    for ours, theirs in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
