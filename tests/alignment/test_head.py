import torch

from simflow_plugin.alignment.head import AlignmentHead
from simflow_plugin.contracts import AlignmentContext


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
