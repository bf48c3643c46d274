"""Families and sizes fill in what is not written; clashes are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FAMILIES, SIZES, FlowArchitecture, FlowConfig, TransformerFlow

MILLIONS = {"S": 25, "B": 129, "L": 278, "XL": 795, "XXL": 1413, "simflow-xxl": 1346, "simflow-l": 475}
XXL_WITHOUT_ADALN = {"class_conditioning": "token", "conditional_blocks": "deep"}


@pytest.mark.parametrize(
    ("size", "token_dim", "options", "millions"),
    [
        *((size, 16, {}, MILLIONS[size]) for size in SIZES),
        ("simflow-l", 64, {}, 476),  # 475 M were published
        # 0.89 B without adaLN, 1.19 B with four vectors, 1.34 B with six, and 1.4 B in the paper.
        ("simflow-xxl", 64, XXL_WITHOUT_ADALN, 895),
        ("simflow-xxl", 64, {"adaln_gates": False}, 1198),
        ("simflow-xxl", 64, {}, 1347),
    ],
)
def test_size_has_its_number_of_parameters(
    size: str, token_dim: int, options: dict[str, Any], millions: int
) -> None:
    config = FlowConfig(size=size, token_dim=token_dim, grid_size=(16, 16), num_classes=1000, **options)
    with torch.device("meta"):
        flow = TransformerFlow(config)
    assert round(flow.num_parameters() / 1e6) == millions


def test_starflows_size_has_the_published_layout() -> None:
    architecture = FlowArchitecture(size="XXL")
    assert architecture.layers_per_block == (2, 2, 2, 2, 2, 18)
    assert (architecture.width, architecture.head_dim) == (2048, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_fills_in_its_values(family: str) -> None:
    resolved = FlowArchitecture(family=family, size="S").model_dump()
    assert FAMILIES[family].items() <= resolved.items()


def test_what_is_written_wins() -> None:
    architecture = FlowArchitecture(family="tarflow", size="S", scale="softplus", width=128)
    assert (architecture.scale, architecture.width) == ("softplus", 128)
    assert architecture.layers_per_block == (2, 2, 2, 8)


def test_resolved_architecture_reproduces_itself() -> None:
    architecture = FlowArchitecture(family="tarflow", size="S", qk_norm=True)
    assert FlowArchitecture(**architecture.model_dump()) == architecture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "M"}, "unknown `M`"),
        ({"width": 100}, "not a multiple of head_dim"),
        ({"num_kv_heads": 4}, "cannot share"),
        ({"head_dim": 6, "width": 12}, "divisible by 4"),
        ({"soft_clips_shift": True}, "no effect without soft_clip"),
        ({"scale": "unit", "soft_clip": 1.0}, "no effect with scale"),
        ({"layers_per_block": (2, 0)}, r"layers_per_block\.1\s+Input should be greater than 0"),
        ({"num_layer": 2}, "num_layer"),
        ({"positions": "learned", "rope_side": 4.0}, "rope_side have no effect"),
        ({"mlp_ratio": 0.001}, "leaves no hidden channel"),
        ({"class_conditioning": "token", "adaln_gates": False}, "adaln_gates has no effect"),
        ({"class_conditioning": "adaln", "conditional_blocks": "all", "norm": "rms"}, "norm has no effect"),
    ],
)
def test_bad_architecture_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FlowArchitecture(**({"size": "S"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 2, "condition_dim": 3}, "not both"),
        ({"condition_length": 2}, "no effect without condition_dim"),
        ({"grid_size": (0, 4)}, "must be positive"),
        ({"condition_dim": 3, "condition_frequencies": 34}, "at most head_dim / 2"),
        ({"condition_frequencies": 2}, "condition_frequencies has no effect"),
        ({"patch_size": 2, "token_dim": 3}, "no multiple of 4, the pixels of a patch"),
        ({"class_conditioning": "adaln", "condition_dim": 4}, "condition_length: 1"),
        ({"class_conditioning": "adaln", "condition_dim": 4, "condition_length": 2}, "found 2"),
    ],
)
def test_bad_geometry_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FlowConfig(**({"size": "S", "token_dim": 4, "grid_size": (2, 2)} | options))


def test_geometry_follows_from_latents() -> None:
    config = FlowConfig.for_latents(FlowArchitecture(size="S", patch_size=2), (4, 8, 6), num_classes=10)
    assert (config.token_dim, config.grid_size, config.num_tokens) == (16, (4, 3), 12)


def test_patch_that_does_not_fit_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size: 3 does not divide the latent grid 8 x 8"):
        FlowConfig.for_latents(FlowArchitecture(size="S", patch_size=3), (4, 8, 8))


def test_unknown_family_is_all_that_is_reported() -> None:
    with pytest.raises(ValidationError, match="family: unknown `foo`") as error:
        FlowArchitecture(family="foo")
    assert "Field required" not in str(error.value)
