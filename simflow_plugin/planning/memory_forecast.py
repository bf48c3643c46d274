"""Memory that training will need against memory that is free, reported before the first step."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import SimflowError
from simflow_plugin.evaluation.flops import count_parameters
from simflow_plugin.planning.estimate import Setting, make_plan
from simflow_plugin.runs.parts import Parts

STATE_BYTES = 20
"""Bytes per trained parameter: itself, its gradient, two moments and an average, in float32."""
BYTES_PER_PIXEL = 8192
"""Rough activations of autoencoder and model per pixel of a batch; decides only whether to estimate well."""
CLOSE = 0.2
"""Share of the free memory above which a rough estimate is worth a good one, which takes seconds."""
WITHIN_REACH = 0.9
CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
GIB = 2**30


def foretold_memory(config: RunConfig, parts: Parts, device: torch.device, num_processes: int) -> str | None:
    """Return one line on the memory of training, or None where it is far from scarce or not known.

    Args:
        num_processes: of training; on a CPU they share its memory.
    """
    free = free_memory(device)
    if free is None:
        return None
    sharing = num_processes if device.type == "cpu" else 1
    if sharing * _rough_bytes(config, parts, num_processes) < CLOSE * free:
        return None
    try:
        plan = make_plan(config, Setting(devices=num_processes))
    except SimflowError:
        return None  # shapes known to a file of weights only: nothing is known before training
    needed = sharing * plan.peak_bytes
    line = f"memory: about {needed / GIB:.1f} GiB to train, {free / GIB:.1f} GiB free"
    if needed < WITHIN_REACH * free:
        return line
    return (
        f"{line}. WARNING: training will probably be ended for lack of memory. Halve it with "
        f"training.accumulation={2 * config.training.accumulation}, or choose a smaller training.batch_size or model."
    )


def _rough_bytes(config: RunConfig, parts: Parts, num_processes: int) -> float:
    micro_batch = config.training.batch_size / (num_processes * config.training.accumulation)
    state = STATE_BYTES * count_parameters(parts.joint, only_trained=True)
    return state + BYTES_PER_PIXEL * micro_batch * config.image_size**2


def free_memory(device: torch.device) -> int | None:
    """Return free bytes on a device, within the limit of a container; None for other kinds than CPU and CUDA."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    left = [value for value in map(_left_in_group, CGROUP_LIMITS) if value is not None]
    return min([psutil.virtual_memory().available, *left])


def _left_in_group(files: tuple[str, str]) -> int | None:
    try:
        limit, used = (Path(file).read_text().strip() for file in files)
    except OSError:
        return None
    return int(limit) - int(used) if limit.isdigit() else None
