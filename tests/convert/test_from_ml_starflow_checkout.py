"""Parity with apple/ml-starflow's own code on random weights of random size; needs ML_STARFLOW_DIR."""

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.convert import from_ml_starflow
from simflow_plugin.flow import patchify
from tests.convert.peers import TOLERANCE, condition_by_adaln, import_from, largest, randomize

SWITCHES = ("sos", "use_softplus", "use_swiglu", "use_bias", "use_qk_norm", "use_post_norm", "use_final_norm")
SWITCHES += ("hf_style_rope",)


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    return import_from("ML_STARFLOW_DIR", "transformer_flow")


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    head_dim = draw(st.sampled_from([16, 20, 32]))
    heads = draw(st.integers(1, 3))
    is_free = draw(st.booleans())
    num_blocks = draw(st.integers(1, 4))
    patch_size = draw(st.sampled_from([1, 2]))
    txt_size = draw(st.sampled_from([0, 1, 5]))
    return {
        "in_channels": draw(st.integers(1, 4)),
        "img_size": patch_size * draw(st.integers(2, 4)),
        "patch_size": patch_size,
        "channels": 48 if is_free else heads * head_dim,
        "num_heads": heads * 2 if is_free else None,
        "num_kv_heads": heads if draw(st.booleans()) else None,
        "head_dim": head_dim,
        "num_blocks": num_blocks,
        "layers_per_block": draw(st.lists(st.integers(1, 2), min_size=num_blocks, max_size=num_blocks)),
        "rope": 1,
        "pt_seq_len": draw(st.sampled_from([None, 3, 6])),
        "adaln": txt_size == 1 and draw(st.booleans()),
        "txt_size": txt_size,
        "txt_dim": 7 if txt_size else 0,
        "cond_top_only": bool(txt_size) and draw(st.booleans()),
        "norm_type": draw(st.sampled_from(["layer_norm", "rms_norm"])),
        "soft_clip": draw(st.sampled_from([0, 0.5, 4])),
        "seq_order": draw(st.sampled_from(["R2L", "L2R"])),
        "use_checkpoint": 1,
        **{name: draw(st.booleans()) for name in SWITCHES},
    }


@settings(max_examples=25, deadline=None, derandomize=True)
@given(config=arguments(), seed=st.integers(0, 1000), method=st.sampled_from(["cached", "jacobi", "auto"]))
def test_forward_logdet_and_reverse_agree(
    peer: ModuleType, config: dict[str, Any], seed: int, method: str
) -> None:
    model = peer.Model(**config)
    if config["adaln"]:
        condition_by_adaln(peer, model, config)
    model.eval()
    randomize(model, seed)
    flow = from_ml_starflow(model.state_dict(), config)
    generator = torch.Generator().manual_seed(seed + 1)
    images = torch.randn(
        2, config["in_channels"], config["img_size"], config["img_size"], generator=generator
    )
    text = torch.randn(4, config["txt_size"], 7, generator=generator) if config["txt_size"] else None
    rows = None if text is None else text[:2]
    with torch.no_grad():
        noise, _, _, logdets = model(images, rows)
        ours = flow(patchify(images, config["patch_size"]), condition=rows)
        assert largest(ours.noise, patchify(noise, config["patch_size"])) < TOLERANCE
        # Ours is a sum over dimensions: compare the mean.
        total = torch.stack([logdet.flatten(1).sum(dim=1) for logdet in logdets]).sum(dim=0)
        dims = images[0].numel()
        assert largest(ours.logdet / dims, total / dims) < TOLERANCE
        for guidance in [0.0] if text is None else [0.0, 1.7]:
            theirs = model(images, text if guidance else rows, reverse=True, guidance=guidance)
            tokens = flow.inverse(
                patchify(images, config["patch_size"]),
                condition=rows,
                null_condition=None if text is None else text[2:],
                guidance=guidance,
                method=method,
            )
            assert largest(tokens, patchify(theirs, config["patch_size"])) < TOLERANCE
