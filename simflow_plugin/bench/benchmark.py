"""Benchmark run: build the flow, time all subjects in turn, compare their outputs, compute ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.bench.flow_flops import forward_flops, training_flops
from simflow_plugin.bench.peer import StarflowPeer, process_group
from simflow_plugin.bench.result_table import BenchReport, Row, describe_machine
from simflow_plugin.bench.setting import BenchSetting
from simflow_plugin.bench.timing import Subject, peak_memory, time_in_turn
from simflow_plugin.bench.workload import Workload
from simflow_plugin.evaluation.flops import count_flops
from simflow_plugin.flow import TransformerFlow
from simflow_plugin.flow.matrix_product import onednn_linear, uses_onednn
from simflow_plugin.flow.sampling.methods import SamplingStatistics, parse_methods
from simflow_plugin.progress_bar import count_progress

GEMM = "gemm"
GEMM_ONEDNN = "gemm, oneDNN"
STEP = "training step"
PEER_STEP = "ml-starflow: training step"
PEER_CACHED = "ml-starflow: cached"
PEER_JACOBI = "ml-starflow: jacobi"
STUDENT = "learned: one pass of a student"


def run_bench(setting: BenchSetting) -> BenchReport:
    """Measure a flow.

    Raises:
        ConfigError: for an unknown sampling method, or a checkout that is none or has no such flow.
    """
    parse_methods(list(setting.methods), len(setting.methods))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        peer = None if setting.peer is None else StarflowPeer(setting.peer, setting.config)
        flow = TransformerFlow(setting.config) if peer is None else peer.converted()
    workload = Workload(setting, flow.train())
    if peer is not None:
        peer.follow(workload)
    with process_group() if peer is not None else nullcontext():
        memory = _memory(workload, peer)
        gemms, subjects = _gemms(setting), _subjects(workload, peer)
        with count_progress("bench", len(gemms + subjects) * setting.rounds) as advance:
            time_in_turn(gemms + subjects, setting, advance)
    gemm_speeds = {gemm.name: gemm.flops / gemm.median for gemm in gemms}
    rows = [_row(subject, subjects, max(gemm_speeds.values())) for subject in subjects]
    return BenchReport(describe_machine(setting.device), _describe(setting), gemm_speeds, tuple(rows), memory)


def _subjects(workload: Workload, peer: StarflowPeer | None) -> list[Subject]:
    setting = workload.setting
    batch, prefix = setting.batch_size, setting.prefix_length
    step_flops = batch * training_flops(setting.config, prefix)
    subjects = [Subject(STEP, workload.training_step, step_flops)]
    if peer is not None:
        subjects.append(Subject(PEER_STEP, peer.training_step, step_flops))
    for guidance in (0.0, setting.guidance):
        subjects += _samplers(workload, peer, guidance)
        if setting.config.num_classes is not None:
            subjects.append(_student(workload, guidance))
    return subjects


def _student(workload: Workload, guidance: float) -> Subject:
    """Return the one-pass sampler; its FLOPs are its own, and its samples are another model's."""
    invert = workload.student()
    flops = count_flops(partial(invert, guidance))
    return Subject(STUDENT, partial(invert, guidance), flops, guidance, needs_warmup=True)


def _samplers(workload: Workload, peer: StarflowPeer | None, guidance: float) -> list[Subject]:
    setting = workload.setting
    flops = setting.batch_size * forward_flops(setting.config, setting.prefix_length, guided=guidance > 0)
    methods: list[Any] = ["naive", "cached"] if setting.includes_naive else ["cached"]
    methods += [method for method in setting.methods if method not in methods]
    subjects = [
        Subject(
            _name(method),
            partial(workload.sample, method, guidance),
            flops,
            guidance,
            # A step that is compiled or captured is so in its first run.
            needs_warmup=setting.device.type == "cuda" or (isinstance(method, Mapping) and "step" in method),
        )
        for method in methods
    ]
    if peer is not None:
        subjects += [
            Subject(name, partial(peer.sample, guidance, jacobi), flops, guidance)
            for name, jacobi in ((PEER_CACHED, False), (PEER_JACOBI, True))
        ]
    return subjects


def _gemms(setting: BenchSetting) -> list[Subject]:
    """Return a large square product by torch's default, and by oneDNN where the flow uses it."""
    size, repeats = setting.gemm_size, 4
    dtype = setting.autocast or torch.float32
    first, second = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    products: dict[str, Callable[[], Tensor]] = {GEMM: partial(torch.mm, first, second)}
    if uses_onednn(first, second):
        products[GEMM_ONEDNN] = partial(onednn_linear, first, second, None)

    def repeat(product: Callable[[], Tensor]) -> None:
        for _ in range(repeats):
            product()

    flops = repeats * 2 * size**3
    return [
        Subject(name, partial(repeat, product), flops, needs_warmup=True)
        for name, product in products.items()
    ]


def _memory(workload: Workload, peer: StarflowPeer | None) -> dict[str, int]:
    """Return the peak of forward and backward: ours, with activation checkpointing, and the peer's."""
    device = workload.setting.device
    memory = {STEP: peak_memory(workload.gradients, device)}
    with ExitStack() as undo:
        for block in workload.blocks:
            undo.callback(setattr, block, "config", block.config)
            block.config = block.config.model_copy(update={"activation_checkpointing": True})
        memory[f"{STEP} with activation checkpointing"] = peak_memory(workload.gradients, device)
    if peer is not None:
        memory[PEER_STEP] = peak_memory(peer.gradients, device)
    return memory


def _row(subject: Subject, subjects: Sequence[Subject], gemm_speed: float) -> Row:
    """Compare a subject with the others of its kind: training steps, or sampling runs of the same guidance."""
    is_step = subject.name in (STEP, PEER_STEP)
    is_flow = not is_step and subject.name != STUDENT
    others = {other.name: other for other in subjects if other.guidance == subject.guidance}
    bases = (
        {"ours": STEP, "ml-starflow": PEER_STEP}
        if is_step
        else {"ours": "cached", "ml-starflow": PEER_CACHED}
    )
    oracle = others.get("naive", others["cached"])
    return Row(
        name=subject.name,
        guidance=subject.guidance,
        seconds=subject.median,
        rounds=tuple(subject.seconds),
        speedup={key: others[name].median / subject.median for key, name in bases.items() if name in others},
        gemm_fraction=subject.flops / subject.median / gemm_speed,
        difference=None if not is_flow else _difference(subject, oracle),
        reference="" if not is_flow else oracle.name,
        note="" if not is_flow else _note(subject.result[1]),
    )


def _difference(first: Subject, second: Subject) -> float:
    return float((first.result[0].float() - second.result[0].float()).abs().max())


def _note(statistics: SamplingStatistics | None) -> str:
    """Return the method of the blocks, and the network passes of Jacobi iterations, in training order."""
    if statistics is None:
        return ""
    blocks = sorted(statistics.blocks, key=lambda block: block.block)
    parts = [f"{block.method} {block.passes}" if block.iterations else block.method for block in blocks]
    return parts[0] if len(set(parts)) == 1 else ", ".join(parts)


def _name(method: Any) -> str:
    if isinstance(method, str):
        return method
    options = dict(method)
    return f"{options.pop('name', '?')} {' '.join(f'{key}={value}' for key, value in options.items())}"


def _describe(setting: BenchSetting) -> dict[str, Any]:
    config = setting.config
    return {
        "width": config.width,
        "layers": "+".join(map(str, config.layers_per_block)),
        "tokens": config.num_tokens,
        "token_dim": config.token_dim,
        "batch": setting.batch_size,
        "compute": str(setting.autocast or torch.float32).removeprefix("torch."),
        "log_scale_std": setting.log_scale_std,
        "rounds": setting.rounds,
        "clock": setting.clock,
    }
