"""`simflow plan CONFIG`: memory, FLOPs and days of a run, estimated without building it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from simflow_plugin.cli.completion import complete_configuration
from simflow_plugin.exits import exit_on_user_error

if TYPE_CHECKING:
    from simflow_plugin.config.schema import RunConfig
    from simflow_plugin.planning.estimate import Plan, Setting

GIGA, TERA = 1e9, 1e12


def plan(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped one.", autocompletion=complete_configuration
        ),
    ],
    devices: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 8,
    sharding: Annotated[str, typer.Option(help="none (DDP), zero2 or zero3 (FSDP2).")] = "none",
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, l40s or rtx4090.")] = "h100",
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak that is reached.")] = 0.4,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in training.steps=100.")
    ] = None,
) -> None:
    """Print parameters, memory per device, FLOPs per image and days of training; nothing is trained or loaded."""
    with exit_on_user_error():
        from simflow_plugin.config.loading import load_config
        from simflow_plugin.planning.estimate import Setting, make_plan

        setting = Setting(devices, sharding, gpu, utilisation)
        resolved = load_config(config, set_)
        typer.echo(describe(resolved, setting, make_plan(resolved, setting)))


def describe(config: RunConfig, setting: Setting, plan: Plan) -> str:
    """Return a plan as text, with the formula of the days filled in."""
    from simflow_plugin.planning.estimate import GPUS, LAUNCH_SECONDS, SECONDS_PER_DAY

    gpu, training, flops = GPUS[setting.gpu], config.training, sum(plan.flops.values())
    total = plan.state_bytes + plan.activation_bytes
    lines = [
        f"{config.name}: {config.image_size} x {config.image_size}, batch {training.batch_size}, {training.steps} steps"
    ]
    lines += ["", "parameters"]
    lines += [f"  {name:48} {count / 1e6:10.1f} M" for name, count in plan.parameters.items()]
    lines += [f"  {'trained / frozen':48} {plan.trained / 1e6:10.1f} M / {plan.frozen / 1e6:.1f} M"]
    lines += ["", "FLOPs per image and step (a multiply-add is 2)"]
    lines += [f"  {name:48} {count / GIGA:10.1f} G" for name, count in plan.flops.items()]
    lines += [
        "",
        f"memory per device: {setting.devices} x {setting.gpu}, sharding {setting.sharding}",
        f"  {'parameters, gradients, AdamW, EMA (float32)':48} {plan.state_bytes / GIGA:10.2f} GB",
        f"  {f'activations, micro-batch {plan.micro_batch}':48} {plan.activation_bytes / GIGA:10.2f} GB",
        f"  {'together':48} {total / GIGA:10.2f} GB of {gpu.memory:g} GB",
        "",
        f"arithmetic of a step = {flops / TERA:.4g} TFLOPs x {training.batch_size} images / ({setting.devices} x "
        f"{gpu.flops / TERA:g} TFLOP/s x {setting.utilisation:g}) = {readable_seconds(plan.compute_seconds)}",
        f"launches of a step   = {plan.launches} x {training.accumulation} passes x {LAUNCH_SECONDS * 1e6:g} us = "
        f"{readable_seconds(plan.launch_seconds)}",
        f"the longer of both x {training.steps} steps = {readable_seconds(plan.days * SECONDS_PER_DAY)}",
    ]
    if total >= 0.9e9 * gpu.memory:
        lines += [
            "Too much memory: more devices, --sharding zero3, activation checkpointing or training.accumulation."
        ]
    lines += [f"assumed: {text}" for text in plan.assumptions]
    return "\n".join(lines)


def readable_seconds(seconds: float) -> str:
    """Return a duration in the unit in which it is at least 1: us, ms, s, minutes, hours, days."""
    units = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "s": 1.0, "ms": 1e-3}
    for unit, size in units.items():
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
