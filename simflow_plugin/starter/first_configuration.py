"""First configuration from the facts of a folder: sizes, a timed trial, steps that fit the time."""

from __future__ import annotations

from typing import Any

import torch
import yaml

from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.starter.configuration import FEWEST_STEPS, Schedule, configuration_text, fit_steps
from simflow_plugin.starter.folder_facts import FolderFacts
from simflow_plugin.starter.network_sizes import choose_image_size, choose_sizes
from simflow_plugin.starter.trial_steps import time_here
from simflow_plugin.units import duration

BUSY = 0.5
"""Share of its runnable time below which a timing says more of other programs than of this one."""


def first_configuration(
    name: str, facts: FolderFacts, minutes: float, image_size: int | None = None
) -> tuple[str, str]:
    """Return the YAML text and a line or two on what was chosen.

    Args:
        name: of the run.
        facts: of the images.
        minutes: that the run may take on this machine.
        image_size: pixels; None chooses.
    Raises:
        ConfigError: for an image size without sizes.
    """
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.cuda.get_device_name() if device_type == "cuda" else _cpu()
    sizes = choose_sizes(image_size or choose_image_size(facts, device_type), facts.num_train, device_type)
    trial = configuration_text(name, facts, sizes, Schedule(FEWEST_STEPS, None), device)
    timing = time_here(config_from_source(YamlSource(_mapping(trial), {}, name)))
    schedule = fit_steps(timing, minutes)
    options = f" {facts.root} --minutes {minutes:g}" + (f" --image-size {image_size}" if image_size else "")
    text = configuration_text(name, facts, sizes, schedule, device, options)
    seconds = schedule.seconds or 0.0
    line = (
        f"{sizes.image_size} x {sizes.image_size} pixels, {schedule.steps:,} steps of {sizes.batch_size} images: "
        f"about {duration(seconds)} on {device}"
    )
    if timing.share < BUSY:
        line += (
            f"\nother programs keep this machine busy: with it to yourself, about {duration(seconds * timing.share)}, "
            "and `simflow init` would choose more steps"
        )
    return text, line


def _mapping(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def _cpu() -> str:
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"
