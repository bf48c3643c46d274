"""Header of a run: what is trained on what and with what, for how long, and where it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.evaluation.flops import count_parameters
from simflow_plugin.planning.memory_forecast import foretold_memory
from simflow_plugin.runs.parts import Parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.runs.run_precision import Precision
from simflow_plugin.units import with_prefix

if TYPE_CHECKING:
    from accelerate import Accelerator

    from simflow_plugin.data.summary import DataSummary


def header_lines(
    config: RunConfig, run: RunDirectory, summary: DataSummary, parts: Parts, accelerator: Accelerator
) -> list[str]:
    """Return the header that is printed when training starts."""
    training, num_images = config.training, summary.splits["train"].num_images
    epochs = training.steps * training.batch_size / num_images
    precision = Precision.of_training(training, accelerator.device.type).name
    lines = [
        f"run: {config.name}, written to {run.path}/ (every setting: {run.config_file.name})",
        *summary.brief_lines(),
        f"parameters: {_parameters(config, parts)}",
        f"device: {_device(accelerator)}, {precision}",
        f"training: {training.steps:,} steps of {training.batch_size:,} images, {epochs:.3g} epochs",
    ]
    memory = foretold_memory(config, parts, accelerator.device, accelerator.num_processes)
    return lines if memory is None else [*lines, memory]


def _parameters(config: RunConfig, parts: Parts) -> str:
    joint = parts.joint
    named: list[tuple[str, torch.nn.Module | None]] = [
        (f"autoencoder `{config.autoencoder.name}`", joint.autoencoder),
        (f"model `{config.model.name}`" if config.model is not None else "", joint.model),
        ("discriminator", parts.adversary),
        ("alignment encoder", parts.encoder),
    ]
    shown = []
    for name, module in named:
        if module is not None:
            trained = count_parameters(module, only_trained=True)
            frozen = "" if trained else ", frozen"
            shown.append(f"{name} {with_prefix(count_parameters(module))}{frozen}")
    return "; ".join(shown)


def _device(accelerator: Accelerator) -> str:
    count = accelerator.num_processes
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
        return f"{count} x {name}" if count > 1 else name
    threads = torch.get_num_threads()
    name = f"{accelerator.device.type.upper()}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{name}, {count} processes" if count > 1 else name
