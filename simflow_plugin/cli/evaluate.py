"""`simflow evaluate RUN`: generation, reconstruction and likelihood, with intervals and warnings.

With --samples and --reference, images that others made are measured without a run: `evaluate_files.py`.

`accelerate launch -m simflow_plugin.cli.evaluate RUN` shares the sampling among processes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simflow_plugin.cli.evaluate_files import check_options, evaluate_samples
from simflow_plugin.cli.evaluate_options import (
    HeldOutOptions,
    OutputOptions,
    SampleOptions,
    Scope,
    make_request,
    with_second_sampler,
)
from simflow_plugin.cli.run_options import RUN_HELP, WeightsOptions
from simflow_plugin.command_line import run_command

if TYPE_CHECKING:
    from simflow_plugin.evaluation.evaluator import RunEvaluator


def evaluate(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(help=f"{RUN_HELP}; without one, --samples names images."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Images of others instead of a run: a folder, or FILE.npz with arr_0 (ADM suite)."),
    ] = None,
    *,
    scope: Scope,
    drawn: SampleOptions,
    held_out: HeldOutOptions,
    chosen: WeightsOptions,
    outputs: OutputOptions,
) -> None:
    """Measure a run on held-out data with its averaged weights; an interrupted evaluation goes on.

    An evaluation with the run's own settings also renews its summary.json and report.html.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    check_options(context, run, samples)
    if run is None:
        assert samples is not None
        return evaluate_samples(samples, drawn, scope.batch_size, outputs)
    import torch
    from accelerate import PartialState

    from simflow_plugin.evaluation.evaluator import RunEvaluator
    from simflow_plugin.training.distributed.processes import leaving_together

    request, files = make_request(scope, drawn, held_out), _sample_files(outputs)
    state = PartialState(cpu=not torch.cuda.is_available())
    loaded = chosen.open(run, state.device).with_data_root(scope.data_root)
    evaluators = [RunEvaluator(loaded, request)]
    named: dict[str, Path | str] = {**files}
    if scope.against:
        named["--against"] = scope.against[0]
    _check_has_samples(named, evaluators[0])
    if scope.against:
        evaluators.append(RunEvaluator(loaded, with_second_sampler(request, scope.against)))
    with leaving_together():  # the other processes do not wait while the main one measures
        for evaluator in evaluators:
            evaluator.make_samples(state.process_index, state.num_processes)
    if state.is_main_process:
        _measure(evaluators, files)


def _measure(evaluators: list[RunEvaluator], files: dict[str, Path]) -> None:
    """Measure the first sampler and write its results; set a second one beside it."""
    from simflow_plugin.evaluation.report.run_report import (
        terminal_lines,
        write_evaluation_page,
        write_run_report,
    )
    from simflow_plugin.evaluation.report.two_samplers import sampler_lines
    from simflow_plugin.evaluation.sample_files import save_samples

    evaluator = evaluators[0]
    evaluation, loaded = evaluator.measure(), evaluator.loaded
    for option, out in files.items():
        save_samples(out, evaluator.request.num_samples, evaluator.shards.read(), option, loaded.class_names)
    page = write_evaluation_page(evaluator, evaluation)
    typer.echo("\n".join([*terminal_lines(evaluation), str(page)]))
    if len(evaluators) > 1:
        second = evaluators[1].measure()
        typer.echo("\n".join(sampler_lines((evaluator, evaluation), (evaluators[1], second))))
    if evaluator.is_of_the_run_itself:
        write_run_report(evaluator, evaluation)
        typer.echo(f"{loaded.directory.report_file}")


def _sample_files(outputs: OutputOptions) -> dict[str, Path]:
    """Return the places that samples are written to by option, after looking at each."""
    from simflow_plugin.errors import ConfigError
    from simflow_plugin.evaluation.sample_files import check_out

    options = {"--npz": outputs.npz, "--png": outputs.png}
    files = {option: out for option, out in options.items() if out is not None}
    for option, out in files.items():
        if (out.suffix == ".npz") != (option == "--npz"):
            raise ConfigError(
                f"{option} {out}: expected a file name that ends in .npz for --npz, a folder for --png."
            )
        check_out(out, option)
    return files


def _check_has_samples(files: Mapping[str, Path | str], evaluator: RunEvaluator) -> None:
    from simflow_plugin.errors import ConfigError

    if "generation" not in evaluator.parts:
        for option, out in files.items():
            raise ConfigError(f"{option} {out}: there are samples only with the part `generation`.")


if __name__ == "__main__":
    run_command(evaluate)
