"""Likelihood under every class in one pass is the likelihood under each class alone."""

import pytest
import torch

from simflow_plugin.errors import ShapeError
from tests.flow.builders import build_flow, inputs_for

CLASSES = 3


@pytest.mark.parametrize(
    "options",
    [
        {"conditional_blocks": "deep"},
        {"conditional_blocks": "all"},
        {"class_conditioning": "adaln"},
        {"family": "tarflow"},
        {"scale": "unit"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows_at_once", [None, 4])
def test_every_class_gets_its_own_likelihood(options, rows_at_once):
    flow = build_flow(num_classes=CLASSES, **options)
    tokens = inputs_for(flow)[0]
    found = flow.log_prob_by_class(tokens, rows_at_once)
    for label in range(CLASSES):
        alone = flow.log_prob(tokens, torch.full((len(tokens),), label))
        torch.testing.assert_close(found[:, label], alone, rtol=1e-9, atol=1e-9)
    assert (found.std(1) > 1e-6).all()


def test_blocks_that_see_no_label_run_once_an_image(monkeypatch):
    flow = build_flow(num_classes=CLASSES, conditional_blocks="deep")
    rows = []
    for block in flow.blocks:
        block.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    tokens = inputs_for(flow)[0]
    flow.log_prob_by_class(tokens)
    assert rows == [len(tokens)] * (len(flow.blocks) - 1) + [len(tokens) * CLASSES]


def test_flow_without_classes_is_refused():
    flow = build_flow()
    with pytest.raises(ShapeError, match="no classes"):
        flow.log_prob_by_class(inputs_for(flow)[0])
