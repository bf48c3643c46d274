"""First configuration from the facts of a folder: sizes, a timed trial, steps that fit the time, and the reasons beside
every value that is worth changing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import yaml

from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.starter.folder_facts import FolderFacts
from simflow_plugin.starter.network_sizes import Sizes, choose_image_size, choose_sizes
from simflow_plugin.starter.trial_steps import Timing, time_here
from simflow_plugin.units import duration

FEWEST_STEPS, MOST_STEPS = 100, 200_000
NUM_GRIDS = 4
NUM_MEASURED = 200
FEW_IMAGES = 1000
BUSY = 0.5
"""Share of its runnable time below which a timing is more of other programs than of this one."""


def first_configuration(
    name: str, facts: FolderFacts, minutes: float, image_size: int | None = None
) -> tuple[str, str]:
    """Return the YAML text and a line or two on what was chosen.

    Args:
        minutes: that the run may take on this machine.
        image_size: pixels; None chooses.
    Raises:
        ConfigError: for an image size without sizes.
    """
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.cuda.get_device_name() if device_type == "cuda" else _cpu()
    sizes = choose_sizes(image_size or choose_image_size(facts, device_type), facts.num_train, device_type)
    trial = configuration_text(name, facts, sizes, Schedule(FEWEST_STEPS, 0.0), device)
    timing = time_here(config_from_source(YamlSource(yaml.safe_load(trial), {}, name)))
    schedule = fit_steps(timing, minutes)
    options = f" {facts.root} --minutes {minutes:g}" + (f" --image-size {image_size}" if image_size else "")
    text = configuration_text(name, facts, sizes, schedule, device, options)
    line = (
        f"{sizes.image_size} x {sizes.image_size} pixels, {schedule.steps:,} steps of {sizes.batch_size} images: "
        f"about {duration(schedule.seconds)} on {device}"
    )
    if timing.share < BUSY:
        line += (
            "\nother programs keep this machine busy: with it to yourself, about "
            f"{duration(schedule.seconds * timing.share)}, and `simflow init` would choose more steps"
        )
    return text, line


def _cpu() -> str:
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


class Schedule(NamedTuple):
    """Steps of a run, and the seconds that it will take with grids and measurements."""

    steps: int
    seconds: float


def fit_steps(timing: Timing, minutes: float) -> Schedule:
    """Return as many steps as fit into `minutes` beside grids of samples and the closing measurements."""
    beside = timing.grid * (NUM_GRIDS + NUM_MEASURED / timing.grid_images)
    steps = (60 * minutes - beside) / max(timing.step, 1e-6)
    steps = rounded_down(max(FEWEST_STEPS, min(MOST_STEPS, steps)))
    return Schedule(steps, steps * timing.step + beside)


def rounded_down(value: float) -> int:
    """Return an integer with two significant digits, not above `value`."""
    scale = 10 ** max(0, int(math.log10(value)) - 1)
    return int(value / scale) * scale


def configuration_text(
    name: str, facts: FolderFacts, sizes: Sizes, schedule: Schedule, device: str, options: str = ""
) -> str:
    """Return the YAML of a first run, with the device and the options of `simflow init` in its header."""
    steps, time = schedule.steps, f"{duration(schedule.seconds)} on {device}"
    every = max(1, steps // NUM_GRIDS)
    epochs = steps * sizes.batch_size / facts.num_train
    guidance = 0.5 if facts.num_classes else 0.0
    few = "\n# So few images are learned by heart: see the nearest ones to samples in report.html."
    size = sizes.image_size
    labels = "" if facts.labels else "true: "
    guided = (
        "higher: more typical of the class, less diverse" if guidance else "there are no classes to guide by"
    )
    seen = "\n".join(f"# {line.strip()}" for line in facts.lines())
    return f"""\
# SimFlow on {facts.root.name}: VAE and flow together, from scratch, one loss; {steps:,} steps in about {time}.
# Written by `simflow init{options}`, which saw:
{seen}{few if facts.num_train < FEW_IMAGES else ""}
name: {_scalar(name)}
image_size: {size}  # center-cropped and resized; sizes for larger ones: simflow init --image-size {2 * size}
data:
  name: image_folder
  root: {_scalar(str(facts.root))}
  labels: {str(facts.labels).lower()}  # {labels}a class for each subfolder
  test_share: {facts.test_share}  # held out where there is no test/ or val/ beside train/
autoencoder:
  name: kl
  factor: {sizes.factor}  # latents are {sizes.image_size // sizes.factor} x {sizes.image_size // sizes.factor}
  latent_channels: {sizes.latent_channels}
  widths: [{", ".join(map(str, sizes.widths))}]  # channels by resolution; more are sharper and slower
  layers_per_block: 1
  uses_mid_attention: false
  posterior: {{name: fixed, std: 0.5}}  # the method: a constant (arXiv:2512.04084)
model:
  name: simflow
  flow:  # {sizes.num_tokens} tokens
    family: starflow
    patch_size: {sizes.patch_size}
    width: {sizes.width}
    layers_per_block: [{", ".join(map(str, sizes.layers_per_block))}]  # in training order, the deep block last
    head_dim: 32
objective:
  reconstruction: {{l2: {sizes.reconstruction_weight:g}}}  # higher: sharper reconstructions, latents harder to model
  beta: 1.0
optimizer: {{lr: 1.0e-3, schedule: cosine, warmup_steps: {min(100, max(1, steps // 10))}, weight_decay: 1.0e-4}}
training:
  steps: {steps}  # {epochs:.3g} epochs; ten times as many are better pictures
  batch_size: {sizes.batch_size}
  horizontal_flip: false  # true where a mirrored image is as good
  ema: {{decay: {0.995 if steps < 10_000 else 0.9995}}}
  log_every: {max(1, min(50, steps // 20))}
  sample_every: {every}
  checkpoint_every: {every}
sampling: {{guidance: {guidance}}}  # {guided}
evaluation: {{num_samples: {NUM_MEASURED}, num_likelihood: {min(NUM_MEASURED, facts.num_test)}}}
"""


def _scalar(text: str) -> str:
    """Return text as one YAML scalar, in quotes where it needs them."""
    return yaml.safe_dump(text, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
