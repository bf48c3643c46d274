"""The affine head: its two parametrisations, its clip, and its range."""

from __future__ import annotations

import pytest
import torch

from simflow_plugin.flow.affine import affine_forward, affine_inverse, affine_parameters
from simflow_plugin.flow.architecture import FlowArchitecture


def architecture(**options: object) -> FlowArchitecture:
    return FlowArchitecture(**({"size": "S"} | options))


@pytest.mark.parametrize("scale", ["softplus", "exp", "unit"])
def test_zero_is_the_identity(scale: str) -> None:
    raw = torch.zeros(1, 2, 3 if scale == "unit" else 6, dtype=torch.float64)
    affine = affine_parameters(raw, architecture(scale=scale))
    torch.testing.assert_close(torch.stack(affine), torch.zeros(2, 1, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("scale", ["softplus", "exp"])
def test_scale_is_positive_and_finite_over_the_range_of_float32(scale: str) -> None:
    raw = torch.tensor([[[-500.0, -50.0, 0.0, 80.0, 0.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    affine = affine_parameters(raw, architecture(scale=scale))
    affine.log_scale.sum().backward()
    assert bool(torch.isfinite(affine.log_scale).all())
    assert raw.grad is not None
    assert bool(torch.isfinite(raw.grad).all())


def test_softplus_scale_is_continuous_where_its_logarithm_is_approximated() -> None:
    raw = torch.linspace(-32, -29, 101, dtype=torch.float64).repeat(2)[None, None]
    affine = affine_parameters(raw, architecture(scale="softplus"))
    steps = affine.log_scale.diff(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.03), rtol=0, atol=1e-12)


@pytest.mark.parametrize("clips_shift", [False, True])
def test_soft_clip_bounds_what_it_says(clips_shift: bool) -> None:
    options = architecture(scale="exp", soft_clip=2.0, soft_clips_shift=clips_shift)
    affine = affine_parameters(torch.full((1, 1, 4), 100.0), options)
    assert float(affine.log_scale.max()) == pytest.approx(2.0)
    assert float(affine.shift.max()) == pytest.approx(2.0 if clips_shift else 100.0)


def test_half_precision_parameters_become_float32() -> None:
    affine = affine_parameters(torch.randn(1, 2, 4, dtype=torch.bfloat16), architecture())
    assert affine.shift.dtype == affine.log_scale.dtype == torch.float32


def test_inverse_undoes_forward() -> None:
    affine = affine_parameters(torch.randn(2, 3, 8, dtype=torch.float64), architecture())
    tokens = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(affine_inverse(affine_forward(tokens, affine)[0], affine), tokens)
