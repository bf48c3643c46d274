"""Train and test shares of a data set that comes without a split."""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.randomness import named_generator


def split_indices(labels: Tensor, split: str, test_share: float, split_seed: int) -> Tensor:
    """Return the indices of one split, class by class the same share (stratified), ascending.

    The split depends on `split_seed` and not on the run's seed: runs with different seeds are compared on one
    test set, and a checkpoint is never evaluated on what another seed trained it on.

    Args:
        labels: (N,), int64; unlabelled images count as one class.
        split: 'train' or 'test'.
        test_share: in [0, 1).
    Returns:
        (M,), int64.
    """
    chosen = []
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=named_generator(split_seed, "split", label))
        num_test = round(len(members) * test_share)
        chosen.append(members[order[:num_test] if split == "test" else order[num_test:]])
    return torch.cat(chosen).sort().values if chosen else torch.empty(0, dtype=torch.int64)
