"""`simflow plan CONFIG`: memory, FLOPs and days of a run, estimated without building it; with `--measure`, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from simflow_plugin.cli.run_options import ConfigArgument
from simflow_plugin.train_options import SetOption
from simflow_plugin.units import with_prefix

if TYPE_CHECKING:
    from simflow_plugin.config.schema import RunConfig
    from simflow_plugin.planning.estimate import Plan, Setting
    from simflow_plugin.starter.trial_steps import Timing

TERA = 1e12


def plan(
    config: ConfigArgument,
    devices: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 8,
    sharding: Annotated[str, typer.Option(help="none (DDP), zero2 or zero3 (FSDP2).")] = "none",
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, l40s or rtx4090.")] = "h100",
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak that is reached.")] = 0.4,
    set_: SetOption = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Also take a few real steps of one device's share here, and extrapolate."
        ),
    ] = False,
) -> None:
    """Print parameters, memory per device, FLOPs per image and days of training; nothing is trained or loaded.

    With --measure a few real steps are: data and weights must be there, and caches that the run asks for are built.
    """
    from simflow_plugin.config.loading import load_config
    from simflow_plugin.planning.estimate import Setting, make_plan

    setting = Setting(devices, sharding, gpu, utilisation)
    resolved = load_config(config, set_)
    plan = make_plan(resolved, setting)
    typer.echo(describe(resolved, setting, plan))
    if measure:
        from simflow_plugin.starter.trial_steps import share_of_one, time_here

        timing = time_here(share_of_one(resolved, devices))
        typer.echo("\n".join(["", *describe_measured(resolved, setting, plan, timing)]))


def describe(config: RunConfig, setting: Setting, plan: Plan) -> str:
    """Return a plan as text, with the formula of the days filled in."""
    from simflow_plugin.planning.estimate import GPUS, LAUNCH_SECONDS, SECONDS_PER_DAY

    gpu, training, flops = GPUS[setting.gpu], config.training, sum(plan.flops.values())
    lines = [
        f"{config.name}: {config.image_size} x {config.image_size}, batch {training.batch_size}, {training.steps} steps"
    ]
    rows: list[tuple[str, str]] = [(name, with_prefix(count)) for name, count in plan.parameters.items()]
    rows += [("trained / frozen", f"{with_prefix(plan.trained)} / {with_prefix(plan.frozen)}")]
    lines += ["", "parameters", *_table(rows)]
    lines += ["", "FLOPs per image and step (a multiply-add is 2)"]
    lines += _table([(name, with_prefix(count)) for name, count in plan.flops.items()])
    lines += ["", f"memory per device: {setting.devices} x {setting.gpu}, sharding {setting.sharding}"]
    copy = (
        "averages' copy"
        if setting.sharding == "none" or setting.devices == 1
        else "whole model on one device"
    )
    lines += _table(
        [
            ("parameters, gradients, AdamW, EMA (float32)", with_prefix(plan.state_bytes, "B")),
            (f"activations, micro-batch {plan.micro_batch}", with_prefix(plan.activation_bytes, "B")),
            (f"at a grid of samples, with the {copy}", with_prefix(plan.grid_bytes, "B")),
            ("the most of it", f"{with_prefix(plan.peak_bytes, 'B')} of {gpu.memory:g} GB"),
        ]
    )
    lines += [
        "",
        f"arithmetic of a step = {with_prefix(flops, 'FLOPs')} x {training.batch_size} images / ({setting.devices} x "
        f"{gpu.flops / TERA:g} TFLOP/s x {setting.utilisation:g}) = {readable_seconds(plan.compute_seconds)}",
        f"launches of a step   = {plan.launches} x {training.accumulation} passes x {LAUNCH_SECONDS * 1e6:g} us = "
        f"{readable_seconds(plan.launch_seconds)}",
        f"the longer of both x {training.steps} steps = {readable_seconds(plan.days * SECONDS_PER_DAY)}",
    ]
    if plan.peak_bytes >= 0.9e9 * gpu.memory:
        lines += [
            "Too much memory: more devices, --sharding zero3, activation checkpointing or training.accumulation."
        ]
    lines += [f"assumed: {text}" for text in plan.assumptions]
    return "\n".join(lines)


def describe_measured(config: RunConfig, setting: Setting, plan: Plan, timing: Timing) -> list[str]:
    """Return what a few real steps took, extrapolated to the run; `timing` is of one device's share."""
    training = config.training
    grids = -(-training.steps // training.sample_every) if config.model is not None else 0
    seconds = training.steps * timing.step + grids * timing.grid
    share = training.batch_size // setting.devices
    planned = max(plan.compute_seconds, plan.launch_seconds)
    peak = "unknown" if timing.peak_bytes is None else with_prefix(timing.peak_bytes, "B")
    kind = "of the allocator" if timing.device_type == "cuda" else "of this process"
    return [
        f"measured on {timing.device}: one of {setting.devices} devices with its {share} of {training.batch_size} "
        "images; communication between devices, checkpoints and evaluation are not in it",
        *_table(
            [
                ("a step", f"{readable_seconds(timing.step)} (planned: {readable_seconds(planned)})"),
                (f"a grid of {timing.grid_images} samples", readable_seconds(timing.grid)),
                (f"peak memory {kind}", f"{peak} (planned: {with_prefix(plan.peak_bytes, 'B')})"),
                (f"{training.steps} steps and {grids} grids", readable_seconds(seconds)),
            ]
        ),
    ]


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {name:56} {value:>10}" for name, value in rows]


def readable_seconds(seconds: float) -> str:
    """Return a duration in the unit in which it is at least 1: us, ms, s, minutes, hours, days."""
    units = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "s": 1.0, "ms": 1e-3}
    for unit, size in units.items():
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
