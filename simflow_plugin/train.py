"""`python -m simflow_plugin.train --config FILE`: wire the parts together and run the loop.

The same under `accelerate launch -m simflow_plugin.train ...`, and behind `simflow train`.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simflow_plugin.command_line import run_command
from simflow_plugin.config.loading import load_config
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import EmptySplit
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.thumbnail import show_thumbnail
from simflow_plugin.train_options import TrainOptions
from simflow_plugin.training.interrupts import announced_stop, stop_on_signals

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from simflow_plugin.contracts import ImageDataset
    from simflow_plugin.data.summary import DataSummary


def train_command(
    config: Annotated[str, typer.Option("--config", "-c", help="A YAML file, or the name of a shipped one.")],
    options: TrainOptions,
) -> None:
    """Train, from the start or from the run's last checkpoint; then measure, and write the report."""
    train_by_name(config, options)


def train_by_name(config: str, options: TrainOptions) -> None:
    """Train as a command does: from the name of a configuration and the options of the command line."""
    moved = [] if options.data_root is None else [f"data.root={json.dumps(str(options.data_root))}"]
    resolved = load_config(config, [*(options.set_ or []), *moved])
    if options.dry_run:
        print(resolved.to_yaml(), end="")
        return
    run = RunDirectory(options.out if options.out is not None else Path("runs") / resolved.name)
    allow_changed = [*(options.allow_changed or []), *(["data.root"] if moved else [])]
    with announced_stop():
        train(resolved, run, allow_changed, not options.no_report, options.profile, options.allow_pipes)


def train(
    config: RunConfig,
    run: RunDirectory,
    allow_changed: list[str],
    report: bool = True,
    profile_steps: int = 0,
    allows_pipes: bool = False,
) -> None:
    """Train `config` in `run`, resuming if it was begun.

    Args:
        allow_changed: dotted keys that may differ from the run that is resumed.
        report: measure the run afterwards, and write its report.
        profile_steps: record this many.
        allows_pipes: run the commands that `data` names; no configuration may allow it.
    Raises:
        SimflowError: before anything is written, if parts do not fit or the directory is another run's.
        Interrupted: after a signal, when the state was saved.
    """
    from simflow_plugin.config.checks import check_before_training
    from simflow_plugin.data.order import GlobalBatches
    from simflow_plugin.runs.autoguidance import check_guide_before_training
    from simflow_plugin.runs.checkpoints import checkpoint_folders
    from simflow_plugin.runs.environment import describe_environment
    from simflow_plugin.runs.initialisation import Classes, start_from
    from simflow_plugin.runs.parts import build_dataset, build_parts
    from simflow_plugin.training.distributed.processes import leaving_together
    from simflow_plugin.training.loop import Trainer
    from simflow_plugin.training.run_header import header_lines

    accelerator = make_accelerator(config)
    _set_up_logging(accelerator.is_main_process)
    GlobalBatches(config.training.batch_size, accelerator.num_processes, config.training.accumulation)
    with leaving_together(), ExitStack() as stack:
        # From here on, so that a large model may be stopped while it is built.
        with stop_on_signals() as stop:
            # Everything that can be refused is built before the directory is touched.
            dataset = build_dataset(config, "train", allows_pipes)
            if report:
                check_before_training(config, dataset.num_classes)
            summary = describe_data(config, dataset, report, allows_pipes)
            parts = build_parts(config, dataset.num_classes)
            goes_on = bool(checkpoint_folders(run.checkpoints))
            started = [] if goes_on else start_from(config, parts, Classes.of(dataset))
            check_guide_before_training(config, run.path, parts)
            if accelerator.is_main_process:
                stack.enter_context(run.locked())
                run.prepare(config, allow_changed)
                print(
                    "\n".join([*header_lines(config, run, summary, parts, accelerator), *started]), flush=True
                )
                run.write_data_summary(summary.to_json())
                run.add_environment(describe_environment(accelerator.device, accelerator.num_processes))
            accelerator.wait_for_everyone()
            trainer = Trainer(config, run, parts, dataset, accelerator, stop, profile_steps)
            trainer.train()
        if report:
            trainer.processes.run_on_main(lambda: measure(config, run, trainer.device))
        if accelerator.is_main_process:
            for grid in sorted(run.samples.glob("step_*.png"))[-1:]:
                show_thumbnail(grid)
            print("\n".join(closing_lines(config, run)), flush=True)


def _set_up_logging(is_main: bool) -> None:
    """Let this package inform on the main process, and libraries warn: what else they did is no news of the run."""
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(message)s")
    logging.getLogger("simflow_plugin").setLevel(logging.INFO if is_main else logging.ERROR)
    if not is_main:  # each process reads images of its own, and names the corrupt ones
        logging.getLogger("simflow_plugin.data").setLevel(logging.WARNING)


def measure(config: RunConfig, run: RunDirectory, device: torch.device) -> None:
    """Measure the trained run, write its pages and send its metrics to the trackers, unless that was done."""
    from simflow_plugin.evaluation.report.run_report import evaluate_after_training
    from simflow_plugin.training.trackers import log_final_metrics

    if run.is_measured():
        print("measured before: to measure it anew, or otherwise, use `simflow evaluate`", flush=True)
    else:
        evaluate_after_training(run, device)
        log_final_metrics(run, config)


def closing_lines(config: RunConfig, run: RunDirectory) -> list[str]:
    """Return where to look when a run has ended."""
    grids = sorted(run.samples.glob("step_*.png"))
    found = [
        ("report", run.report_file),
        ("numbers", run.summary_file),
        *(("samples", g) for g in grids[-1:]),
    ]
    lines = [f"{name}: {path}" for name, path in found if path.exists()]
    if config.model is not None:
        lines.append(f"more samples: simflow sample {run.path} --out samples.npz")
    return lines


def describe_data(
    config: RunConfig, train: ImageDataset, needs_test: bool, allows_pipes: bool = False
) -> DataSummary:
    """Return what was understood of the data set of `config`, both splits.

    Args:
        needs_test: refuse a data set that leaves no test image; else that is a note.
    Raises:
        DataError: if the splits do not fit together, or their images cannot be read.
    """
    from simflow_plugin.data.summary import summarize
    from simflow_plugin.runs.parts import build_dataset

    test: ImageDataset | None = None
    try:
        test = build_dataset(config, "test", allows_pipes)
    except EmptySplit:
        if needs_test:
            raise
    return summarize(config.data.name, train, test, config.training.batch_size)


def make_accelerator(config: RunConfig) -> Accelerator:
    """Build the Accelerator: device, processes, precision and kernels.

    Raises:
        ConfigError: if float16 is asked for without a GPU, or accelerate was configured for DeepSpeed.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import parse_flag_from_env

    from simflow_plugin.runs.run_precision import Precision, choose_kernels
    from simflow_plugin.training.distributed.processes import process_group_options

    has_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    chosen = Precision.of_training(config.training, "cuda" if has_gpu else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = chosen.tf32
    torch.backends.cudnn.allow_tf32 = chosen.tf32
    choose_kernels(config.training.deterministic)
    mixed = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[chosen.name]
    return Accelerator(mixed_precision=mixed, **process_group_options(has_gpu))


if __name__ == "__main__":
    run_command(train_command)
