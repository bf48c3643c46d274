"""Plots: what was logged is drawn, what was not is left out."""

import io
import math

import numpy as np
from PIL import Image

from simflow_plugin.evaluation.report.plots import COLOURS, plot_latents, plot_panels, plot_terms

ROWS = [{"step": s, "seconds": s / 2, "nll": 2.0 - s / 10, "lr_model": 1e-3} for s in range(1, 6)]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has_colour(png, colour):
    target = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return bool((np.abs(pixels(png) - target).max(axis=-1) <= 8).any())


def test_one_line_per_run():
    one, two = plot_terms({"a": ROWS}), plot_terms({"a": ROWS, "b": ROWS[:3]})
    assert has_colour(one, COLOURS[0])
    assert not has_colour(one, COLOURS[1])
    assert has_colour(two, COLOURS[1])


def test_rates_are_not_losses():
    assert (
        plot_terms({"a": [{"step": 1, "lr_model": 1e-3, "skipped_steps": 0, "images_per_second": 5.0}]})
        is None
    )


def test_seconds_may_be_the_horizontal_axis():
    assert (pixels(plot_terms({"a": ROWS}, "seconds"))).std() > 1


def test_a_gap_is_left_for_values_that_are_not_finite():
    assert has_colour(plot_panels({"p": {"a": ([0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0])}}, "x"), COLOURS[0])


def test_plots_do_not_change_from_call_to_call():
    assert plot_terms({"a": ROWS}) == plot_terms({"a": ROWS})


def test_latents_are_drawn_with_the_floor_beside_the_nll():
    rows = [{**row, "latent_std": 1.0, "signal_to_noise": 2.0, "nll_floor": 0.726} for row in ROWS]
    assert all(has_colour(plot_latents(rows), colour) for colour in COLOURS[:4])


def test_learnable_variance_has_no_floor_to_draw():
    rows = [{**row, "latent_std": 1.0, "signal_to_noise": 2.0} for row in ROWS]
    assert has_colour(plot_latents(rows), COLOURS[2])
    assert not has_colour(plot_latents(rows), COLOURS[3])


def test_latents_of_a_log_without_them_are_not_drawn():
    assert plot_latents([{"step": 1, "seconds": 1.0}]) is None
