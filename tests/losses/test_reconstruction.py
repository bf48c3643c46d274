"""The reconstruction loss weighs its terms by name, and refuses what would not mean anything."""

import pytest
import torch
from torch import nn

from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.losses.reconstruction import ReconstructionLoss


def test_terms_are_weighted_by_name():
    loss = ReconstructionLoss([("l1", 2.0, nn.L1Loss()), ("l2", 0.5, nn.MSELoss())])
    terms = loss(torch.full((1, 3, 2, 2), 2.0), torch.zeros(1, 3, 2, 2))
    assert {name: term.item() for name, term in terms.items()} == {"l1": 4.0, "l2": 2.0}


@pytest.mark.parametrize(
    ("weights", "message"), [((1.0, 2.0), "`l1` is given twice"), ((-1.0,), r"l1: weight -1\.0")]
)
def test_term_that_comes_twice_or_with_a_negative_weight_is_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        ReconstructionLoss([("l1", weight, nn.L1Loss()) for weight in weights])


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ShapeError, match=r"\(1, 3, 2, 2\), images \(4, 3, 2, 2\)"):
        ReconstructionLoss([("l1", 1.0, nn.L1Loss())])(torch.zeros(1, 3, 2, 2), torch.zeros(4, 3, 2, 2))
