"""Strips between held-out images of two classes: the classes in turn, each strip named by its ends."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.evaluation.drawing import to_uint8
from simflow_plugin.evaluation.latent_statistics import interpolate
from simflow_plugin.evaluation.report.grids import image_grid, png_bytes, shortened_name
from simflow_plugin.evaluation.report.html import Figure, Part, Text
from simflow_plugin.evaluation.report.real_images import rows_in_turn
from simflow_plugin.runs.loaded_run import LoadedRun

CAPTION = "Straight lines between the posterior means of two held-out images, decoded; both ends are reconstructions."


@torch.no_grad()
def interpolation_strips(
    loaded: LoadedRun, test: ImageDataset, num_strips: int, num_steps: int
) -> tuple[Tensor, list[str]]:
    """Interpolate between held-out images: strip i goes from a class to the next one.

    Args:
        num_strips: at most; as many as there are pairs of images.
        num_steps: images of a strip, both ends included.
    Returns:
        (N, num_steps, 3, H, W), [-1, 1], on the CPU, and N names, empty for an unlabelled split.
    """
    rows = rows_in_turn(test, loaded.num_classes, num_strips + 1)
    if len(rows) < 2:
        return torch.zeros(0, num_steps, 3, 1, 1), []
    (batch,) = evaluation_batches(test, len(rows), rows, set())
    images = batch.images.to(loaded.device)
    with loaded.precision.active():
        strips = interpolate(loaded.autoencoder, images[:-1], images[1:], num_steps)
    known = loaded.class_names
    labels = batch.labels.tolist()
    if known is None or min(labels) < 0:
        return strips.float().cpu(), []
    names = [shortened_name(known[label]) for label in labels]
    return strips.float().cpu(), [f"{a} to {b}" for a, b in pairwise(names)]


def strips_figure(strips: Tensor, names: list[str]) -> Part:
    """Lay out strips (N, steps, 3, H, W) in [-1, 1], one a row, with their names if there are any."""
    if len(strips) == 0:
        return Text("Too few held-out images for a pair.")
    picture = image_grid(to_uint8(strips.flatten(0, 1)).numpy(), strips.shape[1], names or None)
    return Figure(png_bytes(picture), CAPTION, "pixels")
