"""Parity with apple/ml-tarflow's own code on random weights of random size; needs ML_TARFLOW_DIR."""

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.convert import from_ml_tarflow
from simflow_plugin.convert.from_ml_tarflow import channel_order
from simflow_plugin.flow import patchify, unpatchify
from tests.convert.peers import TOLERANCE, import_from, largest, randomize


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    return import_from("ML_TARFLOW_DIR", "transformer_flow")


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    patch_size = draw(st.sampled_from([1, 2]))
    return {
        "in_channels": draw(st.integers(1, 3)),
        "img_size": patch_size * draw(st.integers(2, 4)),
        "patch_size": patch_size,
        "channels": 64 * draw(st.integers(1, 2)),
        "num_blocks": draw(st.integers(1, 3)),
        "layers_per_block": draw(st.integers(1, 2)),
        "nvp": draw(st.booleans()),
        "num_classes": draw(st.sampled_from([0, 4])),
    }


@settings(max_examples=15, deadline=None, derandomize=True)
@given(config=arguments(), seed=st.integers(0, 1000), method=st.sampled_from(["cached", "jacobi", "auto"]))
def test_forward_logdet_and_reverse_agree(
    peer: ModuleType, config: dict[str, Any], seed: int, method: str
) -> None:
    model = peer.Model(**config).eval()
    randomize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    if not config["nvp"]:
        model.var.copy_(torch.rand(model.var.shape, generator=generator) + 0.5)
    flow = from_ml_tarflow(model.state_dict(), config)
    order = channel_order(config["in_channels"], config["patch_size"])
    images = torch.randn(
        3, config["in_channels"], config["img_size"], config["img_size"], generator=generator
    )
    labels = torch.tensor([0, 3, NO_LABEL]) if config["num_classes"] else None
    with torch.no_grad():
        outputs, _, logdet = model(images, labels)
        ours = flow(patchify(images, config["patch_size"]), labels)
        noise = (outputs / model.var.sqrt())[:, :, order]
        assert largest(ours.noise, noise) < TOLERANCE
        volume = ours.logdet / images[0].numel() + 0.5 * model.var.log().mean()
        assert largest(volume, logdet.expand(3)) < TOLERANCE
        # The peer's reverse takes no row without one.
        labels = None if labels is None else labels.clamp(min=0)
        for guidance, annealed in (
            [(0.0, False)] if labels is None else [(0.0, False), (1.3, False), (1.3, True)]
        ):
            start = torch.randn(ours.noise.shape, generator=generator)
            theirs = model.reverse(start.clone(), labels, guidance, annealed_guidance=annealed)
            tokens = flow.inverse(
                start[:, :, order],
                labels,
                guidance=guidance,
                guidance_rule={"name": "linear", "annealed": annealed},
                method=method,
            )
            side = config["img_size"] // config["patch_size"]
            assert largest(unpatchify(tokens, (side, side), config["patch_size"]), theirs) < TOLERANCE
