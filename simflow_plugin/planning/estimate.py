"""The plan of a run: parameters, memory per device, FLOPs per image, days.

    days = steps x seconds per step / 86400, where a step takes the longer of
        FLOPs per image x batch / (devices x peak FLOPs per second x utilisation)
        launches per pass x accumulation x 5 us, below which the host cannot start kernels one by one

    memory per device = parameters + gradients + AdamW's two moments + averages, float32, whole or sharded over N,
                      + activations kept for the backward pass of one micro-batch

P trained and F frozen parameters, one average, sharding `none`: 20 P + 4 F bytes; `zero2`: 8 P + 4 F gathered and
reduced in turn, 12 P / N at rest; `zero3`: (20 P + 4 F) / N, and two layers gathered; 4 P more for each average more.
At a grid of samples there are no gradients and activations, but the averages' place is taken by a copy of the weights
that they replace, 4 P, or with FSDP by a whole model on the main device, 4 P + 4 F; the sampler comes on top.
Activations are counted as autograd saves them, under the casts of mixed precision where there are any, with fused
attention. On one device without accumulation gradients grow while activations go, and only the larger of both counts.
Temporary buffers and fragmentation come on top: leave a tenth free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from simflow_plugin.config.average_options import PowerAverage
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.flops import count_parameters
from simflow_plugin.objective import JointObjective, layer_class_names
from simflow_plugin.options import did_you_mean
from simflow_plugin.planning.outline import make_outline
from simflow_plugin.planning.work import flops_per_image, launches_per_pass, saved_bytes

SHARDINGS = ("none", "zero2", "zero3")
SECONDS_PER_DAY = 86400
LAUNCH_SECONDS = 5e-6
"""Assumed time in which torch launches one kernel; 4 to 10 us are usual, a compiled model launches fewer."""
BYTES = 4
"""Parameters, gradients, moments and averages are float32 whatever the compute type."""


@dataclass(frozen=True)
class Gpu:
    """Peak dense bfloat16 FLOPs per second and memory in GB, from the maker's data sheet."""

    flops: float
    memory: float


GPUS = {
    "a100": Gpu(312e12, 80),
    "h100": Gpu(989e12, 80),
    "h200": Gpu(989e12, 141),
    "l40s": Gpu(362e12, 48),
    "rtx4090": Gpu(165e12, 24),
}


@dataclass(frozen=True)
class Setting:
    """Hardware of a planned run.

    Args:
        sharding: `none`, `zero2` or `zero3` (FSDP2).
        gpu: key of `GPUS`.
        utilisation: share of the peak that is reached, in (0, 1].
    """

    devices: int = 8
    sharding: str = "none"
    gpu: str = "h100"
    utilisation: float = 0.4

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ConfigError(f"--gpu {self.gpu}: unknown.{did_you_mean(self.gpu, GPUS)}")
        if self.sharding not in SHARDINGS:
            raise ConfigError(f"--sharding {self.sharding}: unknown.{did_you_mean(self.sharding, SHARDINGS)}")
        if self.devices < 1 or not 0 < self.utilisation <= 1:
            raise ConfigError("--devices must be at least 1, and --utilisation in (0, 1].")


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a run.

    Args:
        parameters: by part.
        trained, frozen: parameters in all.
        flops: per image and training step, by part of the work.
        state_bytes: parameters, gradients, optimizer and averages, per device.
        activation_bytes: of one micro-batch, per device.
        late_gradient_bytes: of the gradients that are not there before the backward pass: those of one device without
            accumulation. DDP keeps buckets for them, and a micro-batch before leaves its own.
        grid_bytes: of all state while a grid of samples is drawn, on the main device.
        micro_batch: images per device and backward pass.
        launches: kernels that forward and backward of a micro-batch launch one by one, at least.
        compute_seconds: of a step, by its arithmetic at the setting's utilisation.
        launch_seconds: of a step, by its launches.
        days: of all steps, each the longer of both.
        assumptions: what could not be known from the configuration alone.
    """

    parameters: dict[str, int]
    trained: int
    frozen: int
    flops: dict[str, int]
    state_bytes: float
    activation_bytes: float
    late_gradient_bytes: float
    grid_bytes: float
    micro_batch: int
    launches: int
    compute_seconds: float
    launch_seconds: float
    days: float
    assumptions: tuple[str, ...]

    @property
    def peak_bytes(self) -> float:
        """Return the most bytes per device, in training or at a grid."""
        return max(self.step_bytes, self.grid_bytes)

    @property
    def step_bytes(self) -> float:
        """Return the most bytes per device in a step: late gradients take the place of activations."""
        late = min(self.late_gradient_bytes, self.activation_bytes)
        return self.state_bytes + self.activation_bytes - late


def make_plan(config: RunConfig, setting: Setting) -> Plan:
    """Plan a run without building anything that needs memory.

    Raises:
        ConfigError: if the batch cannot be shared by that many devices, or a shape is known to a missing file only.
    """
    training = config.training
    shares = setting.devices * training.accumulation
    if training.batch_size % shares:
        raise ConfigError(
            f"training.batch_size {training.batch_size} is not divisible by {setting.devices} devices x "
            f"{training.accumulation} accumulation steps. Choose another --devices."
        )
    outline = make_outline(config)
    joint, flops = outline.joint, flops_per_image(outline)
    micro_batch = training.batch_size // shares
    activations = saved_bytes(outline, micro_batch)
    parts = {"autoencoder": joint.autoencoder, "model": joint.model, "discriminator": outline.discriminator}
    parameters = {name: count_parameters(part) for name, part in parts.items() if part is not None}
    networks = [network for network in (outline.encoder, *outline.perceptual) if network is not None]
    of_losses = sum(count_parameters(network.network) for network in networks)
    if of_losses:
        parameters["frozen networks of the losses"] = of_losses
    discriminator = parameters.get("discriminator", 0)
    counts = _counts(config, joint)
    # A guide of the samples stays between grids, taken to be as large as the model.
    guide = parameters.get("model", 0) if config.sampling.autoguidance is not None else 0
    beside_bytes = BYTES * (of_losses + guide) + 4 * BYTES * discriminator
    state = _state_bytes(joint, counts, setting) + beside_bytes
    at_grids = _grid_bytes(counts, setting) + beside_bytes
    gpu = GPUS[setting.gpu]
    work = sum(flops.values()) * training.batch_size
    compute_seconds = work / (setting.devices * gpu.flops * setting.utilisation)
    launches = launches_per_pass(outline)
    launch_seconds = launches * training.accumulation * LAUNCH_SECONDS
    days = training.steps * max(compute_seconds, launch_seconds) / SECONDS_PER_DAY
    return Plan(
        parameters,
        counts.trained + discriminator,
        counts.frozen + of_losses,
        flops,
        state,
        activations,
        BYTES * counts.trained if shares == 1 else 0,
        at_grids,
        micro_batch,
        launches,
        compute_seconds,
        launch_seconds,
        days,
        outline.assumptions,
    )


class _Counts(NamedTuple):
    """Parameters of the joint module; `averaged` once for each average that is kept."""

    trained: int
    frozen: int
    averaged: int
    num_averages: int


def _counts(config: RunConfig, joint: JointObjective) -> _Counts:
    trained = count_parameters(joint, only_trained=True)
    ema, averaged = config.training.ema, trained
    includes_autoencoder = ema.includes_autoencoder
    if includes_autoencoder is None:
        includes_autoencoder = not joint.moves_autoencoder_by_alignment_only
    if not includes_autoencoder:
        averaged -= count_parameters(joint.autoencoder, only_trained=True)
    num_averages = len(ema.lengths) if isinstance(ema, PowerAverage) else 1
    return _Counts(trained, count_parameters(joint) - trained, averaged, num_averages)


def _state_bytes(joint: JointObjective, counts: _Counts, setting: Setting) -> float:
    """Return bytes per device of parameters, gradients, AdamW's moments and averages of the joint module."""
    trained, frozen = counts.trained, counts.frozen
    kept = 2 * trained + counts.num_averages * counts.averaged  # moments and averages
    if setting.sharding == "none" or setting.devices == 1:
        return BYTES * (2 * trained + frozen + kept)
    if setting.sharding == "zero2":
        return BYTES * (2 * trained + frozen + kept / setting.devices)
    names = layer_class_names(joint.model) if joint.model is not None else []
    layers = [count_parameters(module) for module in joint.modules() if type(module).__name__ in names]
    outside = trained + frozen - sum(layers)  # gathered as one unit around all layers
    gathered = outside + 2 * max(layers, default=0)
    return BYTES * ((2 * trained + frozen + kept) / setting.devices + gathered)


def _grid_bytes(counts: _Counts, setting: Setting) -> float:
    """Return the bytes of the joint module's state on the main device while a grid of samples is drawn."""
    trained, frozen = counts.trained, counts.frozen
    held = 3 * trained + frozen + counts.num_averages * counts.averaged  # weights, moments, averages
    if setting.devices == 1:
        return BYTES * (held + counts.averaged)
    if setting.sharding == "none":  # gradients stay: they are views of the buffers that they are averaged in
        return BYTES * (held + trained + counts.averaged)
    return BYTES * (held / setting.devices + trained + frozen)
