"""`simflow evaluate RUN`: generation, reconstruction and likelihood, with intervals and warnings.

With --samples and --reference, images that others made are measured without a run: `evaluate_files.py`.

`accelerate launch -m simflow_plugin.cli.evaluate RUN` shares the sampling among processes.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

import typer

from simflow_plugin.cli.evaluate_files import check_options, evaluate_samples
from simflow_plugin.cli.run_options import (
    AutoguidanceOption,
    DataRootOption,
    EmaLengthOption,
    LastWeightsOption,
    LpipsOption,
    OverwriteOption,
    PrecisionOption,
)
from simflow_plugin.exits import exit_on_user_error

if TYPE_CHECKING:
    from simflow_plugin.evaluation.request import EvaluationRequest


def evaluate(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Argument(help="Run directory; without one, images are named by --samples.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Images of others instead of a run: a folder, or FILE.npz with arr_0 (ADM suite)."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="generation, reconstruction, likelihood, classification; default: the first three."
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=1, help="Samples to draw; published FIDs use 50,000.")
    ] = 10_000,
    guidance: Annotated[float | None, typer.Option(min=0, help="Weight w; default: the run's own.")] = None,
    seed: Annotated[
        int, typer.Option(help="Of the samples' noise; sample i depends on the seed and i only.")
    ] = 0,
    sampling: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the model's sampler: method=jacobi."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; default: the newest.")] = None,
    last_weights: LastWeightsOption = False,
    ema_length: EmaLengthOption = None,
    autoguidance: AutoguidanceOption = None,
    reference: Annotated[
        str,
        typer.Option(
            help="Split to compare samples with: test (held out) or train. With --samples: a folder of images, an "
            ".npz of images or statistics (ADM, pytorch-fid), torch-fidelity's .pt."
        ),
    ] = "test",
    extractor: Annotated[
        str,
        typer.Option(
            help="inception, dinov2-b, timm:MODEL (at 96 pixels: timm:MODEL@96), pretrained, or none."
        ),
    ] = "inception",
    weights: Annotated[Path | None, typer.Option(help="File of the extractor's weights.")] = None,
    lpips_backbone: LpipsOption = None,
    num_held_out: Annotated[int | None, typer.Option(min=1, help="Held-out images; default: all.")] = None,
    likelihood: Annotated[
        str, typer.Option(help="Of images given decoded ones: gaussian or laplace.")
    ] = "gaussian",
    posterior_samples: Annotated[
        int, typer.Option(min=1, help="Per image, in the likelihood; 1 leaves its Monte-Carlo error unknown.")
    ] = 2,
    classify: Annotated[
        bool,
        typer.Option(
            "--classify", help="Also the accuracy of argmax over y of log p(z | y); K passes an image."
        ),
    ] = False,
    ood: Annotated[
        str | None, typer.Option(help="Data set (name or YAML mapping) for the out-of-distribution AUROC.")
    ] = None,
    npz: Annotated[
        Path | None, typer.Option(help="Also write the samples for the ADM suite (arr_0).")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also write the samples as PNG files into this folder.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Does not change the samples.")] = None,
    precision: PrecisionOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="With --samples: also write the numbers to this file.")
    ] = None,
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
) -> None:
    """Measure a run on held-out data with its averaged weights; an interrupted evaluation goes on.

    An evaluation with the run's own settings also renews its summary.json and report.html.
    """
    with exit_on_user_error():
        from simflow_plugin.errors import EvaluationError
        from simflow_plugin.evaluation.request import EvaluationRequest
        from simflow_plugin.evaluation.sample_files import check_not_there

        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        check_options(context, run, samples)
        if run is None:
            assert samples is not None
            if json_file is not None:
                check_not_there(json_file, overwrite, "--json")
            files = (samples, Path(reference), extractor, weights)
            return evaluate_samples(*files, seed, batch_size, json_file)
        for option, value, known in (
            ("--reference", reference, ("test", "train")),
            ("--likelihood", likelihood, ("gaussian", "laplace")),
        ):
            if value not in known:
                raise EvaluationError(f"{option} {value}: expected {' or '.join(known)}.")
        request = EvaluationRequest(
            parts=tuple(only) if only else None,
            num_samples=num_samples,
            guidance=guidance,
            seed=seed,
            sampling=tuple(sampling or ()),
            reference=cast(Literal["test", "train"], reference),
            extractor=None if extractor == "none" else extractor,
            weights=weights,
            num_held_out=num_held_out,
            likelihood=cast(Literal["gaussian", "laplace"], likelihood),
            posterior_samples=posterior_samples,
            lpips_backbone=str(lpips_backbone) if lpips_backbone is not None else None,
            classify=classify,
            ood=ood,
            batch_size=batch_size,
            autoguidance=autoguidance,
        )
        run_evaluation(
            run, request, Weights(not last_weights, step, precision, ema_length), npz, png, data_root
        )


class Weights(NamedTuple):
    """Weights of a run to load: averaged or not, of a step or the newest, the precision, the length of the average."""

    averaged: bool = True
    step: int | None = None
    precision: str | None = None
    ema_length: float | None = None


def run_evaluation(
    run: Path,
    request: EvaluationRequest,
    weights: Weights = Weights(),  # noqa: B008 (immutable)
    npz: Path | None = None,
    png: Path | None = None,
    data_root: Path | None = None,
) -> None:
    """Evaluate, on as many processes as accelerate started; the main one measures, writes and prints."""
    import torch
    from accelerate import PartialState

    from simflow_plugin.errors import ConfigError
    from simflow_plugin.evaluation.evaluator import RunEvaluator
    from simflow_plugin.evaluation.report.run_report import (
        terminal_lines,
        write_evaluation_page,
        write_run_report,
    )
    from simflow_plugin.evaluation.sample_files import check_out, save_samples
    from simflow_plugin.runs.loaded_run import load_run
    from simflow_plugin.training.distributed.processes import leaving_together

    outputs = [(option, out) for option, out in (("--npz", npz), ("--png", png)) if out is not None]
    for option, out in outputs:
        if (out.suffix == ".npz") != (option == "--npz"):
            raise ConfigError(
                f"{option} {out}: expected a file name that ends in .npz for --npz, a folder for --png."
            )
        check_out(out, option)
    state = PartialState(cpu=not torch.cuda.is_available())
    evaluator = RunEvaluator(load_run(run, state.device, *weights).with_data_root(data_root), request)
    if outputs and "generation" not in evaluator.parts:
        raise ConfigError(
            f"{outputs[0][0]} {outputs[0][1]}: there are samples only with the part `generation`."
        )
    with leaving_together():  # the other processes do not wait while the main one measures
        evaluator.make_samples(state.process_index, state.num_processes)
    if not state.is_main_process:
        return
    evaluation = evaluator.measure()
    for option, out in outputs:
        names = evaluator.loaded.class_names
        save_samples(out, request.num_samples, evaluator.shards.read(), option, names)
    page = write_evaluation_page(evaluator, evaluation)
    for line in terminal_lines(evaluation):
        typer.echo(line)
    typer.echo(f"{page}")
    if evaluator.is_of_the_run_itself:
        write_run_report(evaluator, evaluation)
        typer.echo(f"{evaluator.loaded.directory.report_file}")


if __name__ == "__main__":
    typer.run(evaluate)
