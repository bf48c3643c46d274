"""Option groups of `simflow evaluate`, and the request for an evaluation that they make up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simflow_plugin.cli.run_options import (
    AutoguidanceOption,
    DataRootOption,
    LpipsOption,
    OverwriteOption,
)

if TYPE_CHECKING:
    from simflow_plugin.evaluation.request import EvaluationRequest


@dataclass(frozen=True)
class Scope:
    """Parts to measure, a second sampler to compare with, and images at a time."""

    only: Annotated[
        list[str] | None,
        typer.Option(
            help="generation, reconstruction, likelihood, classification; default: the first three."
        ),
    ] = None
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Of a second sampler, measured alike beside the first: method=cached."
        ),
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Does not change the samples.")] = None
    data_root: DataRootOption = None


@dataclass(frozen=True)
class SampleOptions:
    """Samples, and the real images and features that they are compared in."""

    num_samples: Annotated[int, typer.Option(min=1, help="Samples to draw; published FIDs use 50,000.")] = (
        10_000
    )
    guidance: Annotated[float | None, typer.Option(min=0, help="Weight w; default: the run's own.")] = None
    seed: Annotated[
        int, typer.Option(help="Of the samples' noise; sample i depends on the seed and i only.")
    ] = 0
    sampling: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the model's sampler: method=jacobi.")
    ] = None
    autoguidance: AutoguidanceOption = None
    reference: Annotated[
        str,
        typer.Option(
            help="Split to compare samples with: test (held out) or train. With --samples: a folder of images, an "
            ".npz of images or statistics (ADM, pytorch-fid), torch-fidelity's .pt."
        ),
    ] = "test"
    extractor: Annotated[
        str,
        typer.Option(
            help="inception, dinov2-b, timm:MODEL (at 96 pixels: timm:MODEL@96), pretrained, or none."
        ),
    ] = "inception"
    weights: Annotated[Path | None, typer.Option(help="File of the extractor's weights.")] = None


@dataclass(frozen=True)
class HeldOutOptions:
    """Reconstruction and likelihood of held-out images."""

    lpips_backbone: LpipsOption = None
    num_held_out: Annotated[int | None, typer.Option(min=1, help="Held-out images; default: all.")] = None
    likelihood: Annotated[
        Literal["gaussian", "laplace"], typer.Option(help="Of images given decoded ones.")
    ] = "gaussian"
    posterior_samples: Annotated[
        int, typer.Option(min=1, help="Per image, in the likelihood; 1 leaves its Monte-Carlo error unknown.")
    ] = 2
    classify: Annotated[
        bool,
        typer.Option(
            "--classify", help="Also the accuracy of argmax over y of log p(z | y); K passes an image."
        ),
    ] = False
    ood: Annotated[
        str | None, typer.Option(help="Data set (name or YAML mapping) for the out-of-distribution AUROC.")
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """Files to write beside the result."""

    npz: Annotated[Path | None, typer.Option(help="Also write the samples for the ADM suite (arr_0).")] = None
    png: Annotated[
        Path | None, typer.Option(help="Also write the samples as PNG files into this folder.")
    ] = None
    json_file: Annotated[
        Path | None, typer.Option("--json", help="With --samples: also write the numbers to this file.")
    ] = None
    overwrite: OverwriteOption = False


def make_request(scope: Scope, drawn: SampleOptions, held_out: HeldOutOptions) -> EvaluationRequest:
    """Return the request for an evaluation of a run.

    Raises:
        EvaluationError: for a choice that is none.
    """
    from simflow_plugin.errors import EvaluationError
    from simflow_plugin.evaluation.request import EvaluationRequest

    if drawn.reference not in ("test", "train"):
        raise EvaluationError(f"--reference {drawn.reference}: expected test or train.")
    backbone = held_out.lpips_backbone
    values: dict[str, Any] = {**vars(drawn), **vars(held_out)}  # the fields have the names of the request's
    values |= {
        "sampling": tuple(drawn.sampling or ()),
        "extractor": None if drawn.extractor == "none" else drawn.extractor,
        "lpips_backbone": None if backbone is None else str(backbone),
    }
    return EvaluationRequest(tuple(scope.only) if scope.only else None, batch_size=scope.batch_size, **values)


def with_second_sampler(request: EvaluationRequest, sampling: list[str]) -> EvaluationRequest:
    """Return a request for the samples of another sampler, `key=value` of its options, and for nothing else."""
    return replace(
        request,
        parts=("generation",),
        sampling=(*request.sampling, *sampling),
        lpips_backbone=None,
        likelihood="gaussian",
        posterior_samples=type(request).posterior_samples,
        classify=False,
        ood=None,
    )
