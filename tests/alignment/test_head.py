import pytest
import torch

from simflow_plugin.alignment.head import AlignmentHead, negative_cosine, resample_tokens, square_grid
from simflow_plugin.contracts import AlignmentContext
from simflow_plugin.errors import ShapeError


@pytest.mark.parametrize(
    ("features", "expected"),
    [([[3.0, 0.0], [0.0, 2.0]], -1), ([[-1.0, 0.0], [0.0, -1.0]], 1), ([[1.0, 0.0], [1.0, 0.0]], -0.5)],
    ids=["equal", "opposite", "mean over tokens"],
)
def test_loss_is_the_mean_negative_cosine(features, expected):
    assert negative_cosine(torch.eye(2)[None], torch.tensor([features])) == pytest.approx(expected, abs=1e-6)


def test_loss_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        loss = negative_cosine(torch.randn(1, 4, 8, dtype=torch.bfloat16), torch.randn(1, 4, 8))
    assert loss.dtype == torch.float32


def test_other_shapes_are_refused():
    with pytest.raises(ShapeError, match="do not match"):
        negative_cosine(torch.randn(1, 4, 8), torch.randn(1, 5, 8))


def test_resampling_to_the_same_grid_changes_nothing():
    features = torch.randn(2, 12, 5)
    assert resample_tokens(features, (3, 4), (3, 4)) is features


def test_resampling_keeps_the_raster_order():
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)
    assert torch.allclose(resample_tokens(rows, (4, 4), (4, 1)).flatten(), torch.arange(4.0))


def test_resampling_keeps_constants():
    assert torch.allclose(resample_tokens(torch.ones(1, 49, 3), (7, 7), (4, 4)), torch.ones(1, 16, 3))


def test_resampling_a_wrong_grid_is_refused():
    with pytest.raises(ShapeError, match="3 x 3"):
        resample_tokens(torch.randn(1, 10, 2), (3, 3), (2, 2))


def test_prefix_tokens_are_noticed():
    with pytest.raises(ShapeError, match="257"):
        square_grid(257)


def test_gradient_reaches_projector_and_tokens():
    head = AlignmentHead(6, AlignmentContext(feature_dim=5, layer=1, projector_dim=8))
    tokens = torch.randn(2, 16, 6, requires_grad=True)
    head(tokens, (4, 4), torch.randn(2, 64, 5)).backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_training_the_head_aligns_tokens():
    head = AlignmentHead(6, AlignmentContext(feature_dim=5, layer=1, projector_dim=32))
    tokens, features = torch.randn(4, 4, 6), torch.randn(4, 4, 5)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = head(tokens, (2, 2), features)
        loss.backward()
        optimizer.step()
    assert loss < -0.95
