"""The bench: build, time everything in turn, compare outputs, and put the ratios together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.bench.flops import forward_flops, training_flops
from simflow_plugin.bench.peer import StarflowPeer, process_group
from simflow_plugin.bench.report import BenchReport, Row, describe_machine
from simflow_plugin.bench.setting import BenchSetting
from simflow_plugin.bench.timing import Subject, peak_memory, time_in_turn
from simflow_plugin.bench.workload import Workload
from simflow_plugin.flow import TransformerFlow
from simflow_plugin.flow.sampling import SamplingStatistics, parse_methods
from simflow_plugin.progress_bar import count_progress

GEMM = "gemm"
STEP = "training step"
PEER_STEP = "ml-starflow: training step"
PEER_CACHED = "ml-starflow: cached"
PEER_JACOBI = "ml-starflow: jacobi"


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
        subjects = _subjects(workload, peer)
        with count_progress("bench", len(subjects) * setting.rounds) as advance:
            time_in_turn(subjects, setting, advance)
    gemm = next(subject for subject in subjects if subject.name == GEMM)
    assert gemm.flops is not None
    speed = gemm.flops / gemm.median
    return BenchReport(
        describe_machine(setting.device), _describe(setting), speed, tuple(_rows(subjects, speed)), memory
    )


def _subjects(workload: Workload, peer: StarflowPeer | None) -> list[Subject]:
    setting = workload.setting
    batch, prefix = setting.batch_size, setting.prefix_length
    step_flops = batch * training_flops(setting.config, prefix)
    subjects = [_gemm(setting), Subject(STEP, workload.training_step, step_flops)]
    if peer is not None:
        subjects.append(Subject(PEER_STEP, peer.training_step, step_flops))
    methods = ["cached", *(method for method in setting.methods if method != "cached")]
    for guidance in (0.0, setting.guidance):
        flops = batch * forward_flops(setting.config, prefix, guided=guidance > 0)

        def add(name: str, run: Any, guidance: float = guidance, flops: int = flops) -> None:
            subjects.append(Subject(name, run, flops, guidance))

        for method in (["naive"] if setting.includes_naive else []) + methods:
            add(_name(method), lambda method=method, w=guidance: workload.sample(method, w))
        if peer is not None:
            add(PEER_CACHED, lambda w=guidance: (peer.sample(w, jacobi=False), None))
            add(PEER_JACOBI, lambda w=guidance: (peer.sample(w, jacobi=True), None))
    return subjects


def _gemm(setting: BenchSetting) -> Subject:
    size = setting.gemm_size
    dtype = setting.autocast or torch.float32
    first, second = (torch.randn(size, size, device=setting.device).to(dtype) for _ in range(2))
    for _ in range(2):
        torch.mm(first, second)
    repeats = 4
    return Subject(GEMM, lambda: [torch.mm(first, second) for _ in range(repeats)][-1], repeats * 2 * size**3)


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


def _rows(subjects: Sequence[Subject], gemm_speed: float) -> list[Row]:
    return [_row(subject, subjects, gemm_speed) for subject in subjects if subject.name != GEMM]


def _row(subject: Subject, subjects: Sequence[Subject], gemm_speed: float) -> Row:
    """Compare a subject with the others of its kind: training steps, or sampling runs of the same guidance."""
    is_step = subject.name in (STEP, PEER_STEP)
    others = {other.name: other for other in subjects if other.guidance == subject.guidance}
    bases = (
        {"ours": STEP, "ml-starflow": PEER_STEP}
        if is_step
        else {"ours": "cached", "ml-starflow": PEER_CACHED}
    )
    oracle = others.get("naive", others["cached"])
    assert subject.flops is not None
    return Row(
        name=subject.name,
        guidance=subject.guidance,
        seconds=subject.median,
        rounds=tuple(subject.seconds),
        speedup={key: others[name].median / subject.median for key, name in bases.items() if name in others},
        gemm_fraction=subject.flops / subject.median / gemm_speed,
        difference=None if is_step else _difference(subject, oracle),
        reference="" if is_step else oracle.name,
        note="" if is_step else _note(subject.result[1]),
    )


def _difference(first: Subject, second: Subject) -> float:
    tokens: list[Tensor] = [subject.result[0].float() for subject in (first, second)]
    return float((tokens[0] - tokens[1]).abs().max())


def _note(statistics: SamplingStatistics | None) -> str:
    """Return method and passes of every block, in training order."""
    if statistics is None:
        return ""
    blocks = sorted(statistics.blocks, key=lambda block: block.block)
    return ", ".join(f"{block.method} {block.passes}" for block in blocks)


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
        "rounds": setting.rounds,
        "clock": setting.clock,
    }
