"""Flow diagnostics: exact for a flow that is the identity, honest for one that is not."""

import pytest
import torch

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.flow_diagnostics import diagnose_flow, jacobi_iterations
from simflow_plugin.flow import FlowArchitecture, FlowConfig, TransformerFlow
from tests.training.toys import LinearModel


def make_flow(is_identity=True):
    torch.manual_seed(0)
    architecture = FlowArchitecture(patch_size=1, width=32, layers_per_block=[1, 1], head_dim=16)
    flow = TransformerFlow(FlowConfig.for_latents(architecture, (4, 4, 4), num_classes=None)).double().eval()
    if not is_identity:
        for block in flow.blocks:
            torch.nn.init.normal_(block.proj_out.weight, std=0.05)
    return flow


def tokens(count=256):
    return torch.randn(count, 16, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_identity_keeps_the_noise_normal():
    found = diagnose_flow(make_flow(), tokens(), None)
    torch.testing.assert_close(found.logdet_per_dim, torch.zeros(2, dtype=torch.float64))
    assert found.noise_mean == pytest.approx(0, abs=0.02)
    assert found.noise_variance == pytest.approx(1, abs=0.03)
    assert found.token_correlation == pytest.approx(0, abs=0.05)
    assert found.channel_correlation < 0.05
    assert found.mean_by_token.shape == found.variance_by_token.shape == (16,)


def test_dependent_tokens_show():
    smooth = tokens().cumsum(dim=1) / 4
    found = diagnose_flow(make_flow(), smooth, None)
    assert found.token_correlation > 0.7
    assert found.variance_by_token[-1] > 4 * found.variance_by_token[0]


def test_block_logdets_sum_to_the_flows():
    flow = make_flow(is_identity=False)
    found = diagnose_flow(flow, tokens(), None)
    assert float(found.logdet_per_dim.sum()) == pytest.approx(
        float(flow(tokens()).logdet.mean().detach() / 64), abs=1e-9
    )


def test_identity_settles_at_once_and_a_tighter_tolerance_takes_longer():
    assert max(jacobi_iterations(make_flow(), tokens(4), None, [1e-6])[1e-6]) <= 2
    found = jacobi_iterations(make_flow(is_identity=False), tokens(4), None, [1e-1, 1e-9])
    assert all(loose <= tight <= 16 for loose, tight in zip(found[1e-1], found[1e-9], strict=True))
    assert sum(found[1e-9]) > sum(found[1e-1])


def test_one_image_is_refused():
    with pytest.raises(EvaluationError, match="1 images"):
        diagnose_flow(make_flow(), tokens(1), None)


def test_models_without_a_flow_have_none():
    assert LinearModel().token_flow() is None
