"""Plots: what was logged is drawn, what was not is left out."""

import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from simflow_plugin.evaluation.report.plots import (
    COLOURS,
    _time_unit,
    fit_scale,
    plot_latents,
    plot_panels,
    plot_terms,
)

ROWS = [{"step": s, "seconds": s / 2, "nll": 2.0 - s / 10, "lr_model": 1e-3} for s in range(1, 6)]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has_colour(plots, colour):
    target = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return any((np.abs(pixels(png) - target).max(axis=-1) <= 8).any() for _, png in plots.plots)


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


def test_every_term_is_a_plot_of_its_own_so_that_they_stack_on_a_phone():
    plots = plot_terms({"a": [{**row, "l2": 1.0} for row in ROWS], "b": ROWS})
    assert [title for title, _ in plots.plots] == ["NLL (nats / latent dim)", "L2 of pixels"]
    assert [name for name, _ in plots.legend] == ["a", "b"]
    assert all(figure.display_size[0] <= 440 for figure in plots.figures)


@pytest.mark.parametrize(
    ("values", "scale", "remark"),
    [
        ([25.0, 8.0, 1.2, 1.1, 1.0, 0.9], "log", ""),
        ([1.12, 1.0, 0.95, 0.92, 0.91], "linear", ""),
        ([500.0, *(-1.0 + 0.01 * i for i in range(60))], "linear", "outside: up to 500"),
        ([-500.0, *(-1.0 + 0.01 * i for i in range(60))], "linear", "outside: down to -500"),
    ],
    ids=["fall over decades", "slow fall", "outlier above", "outlier below"],
)
def test_scale_lets_all_of_a_curve_be_read(values, scale, remark):
    axis = Figure().subplots()
    axis.plot(range(len(values)), values)
    fit_scale(axis, values)
    assert axis.get_yscale() == scale
    assert " ".join(text.get_text() for text in axis.texts) == remark
    low, high = axis.get_ylim()
    assert (high - low < 3) == (scale == "linear")


def test_hours_of_training_are_hours():
    assert _time_unit({"nll": {"a": ([3600.0, 18000.0], [1, 1])}}, "seconds of training") == (
        3600.0,
        "hours of training",
    )
    assert plot_terms({"a": ROWS}, "seconds") != plot_terms({"a": ROWS})


def test_a_gap_is_left_for_values_that_are_not_finite():
    assert has_colour(plot_panels({"p": {"a": ([0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0])}}, "x"), COLOURS[0])


def test_plots_do_not_change_from_call_to_call():
    assert plot_terms({"a": ROWS}) == plot_terms({"a": ROWS})


def test_latents_are_drawn_with_the_floor_beside_the_nll_where_it_was_logged():
    """A learnable variance has no floor; an earlier log has none of it."""
    learnable = [{**row, "latent_std": 1.0, "signal_to_noise": 2.0} for row in ROWS]
    fixed = [{**row, "nll_floor": 0.726} for row in learnable]
    for rows, num_lines in ((fixed, 4), (learnable, 3)):
        plots = plot_latents(rows)
        assert [has_colour(plots, colour) for colour in COLOURS[:5]] == [True] * num_lines + [False] * (
            5 - num_lines
        )
    assert plot_latents([{"step": 1, "seconds": 1.0}]) is None
