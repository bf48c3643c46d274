"""Families and sizes fill in what is not written; clashes are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FAMILIES, SIZES, FlowArchitecture, FlowConfig, TransformerFlow

MILLIONS = {"S": 25, "B": 129, "L": 278, "XL": 795, "XXL": 1413, "simflow-xxl": 1346, "simflow-l": 475}


@pytest.mark.parametrize("size", SIZES)
def test_size_has_its_number_of_parameters(size: str) -> None:
    config = FlowConfig(size=size, token_dim=16, grid_size=(16, 16), num_classes=1000)
    with torch.device("meta"):
        flow = TransformerFlow(config)
    assert round(flow.num_parameters() / 1e6) == MILLIONS[size]


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({"class_conditioning": "token", "conditional_blocks": "deep"}, 895),
        ({"adaln_gates": False}, 1198),
        ({}, 1347),
    ],
)
def test_conditioning_of_simflows_size_decides_its_parameters(options: dict[str, Any], millions: int) -> None:
    """0.89 B without adaLN, 1.19 B with four vectors, 1.34 B with six: the paper says 1.4 B."""
    config = FlowConfig(size="simflow-xxl", token_dim=64, grid_size=(16, 16), num_classes=1000, **options)
    with torch.device("meta"):
        flow = TransformerFlow(config)
    assert round(flow.num_parameters() / 1e6) == millions


def test_simflow_l_has_the_published_parameters_on_256_tokens() -> None:
    config = FlowConfig(size="simflow-l", token_dim=64, grid_size=(16, 16), num_classes=1000)
    with torch.device("meta"):
        assert TransformerFlow(config).num_parameters() == pytest.approx(475e6, rel=0.003)


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
    assert (architecture.scale, architecture.width, architecture.layers_per_block) == (
        "softplus",
        128,
        (2, 2, 2, 8),
    )


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
