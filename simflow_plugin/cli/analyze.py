"""`simflow analyze RUN`: latent statistics, robustness of the decoder, interpolation, flow diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import RUN_HELP, DataRootOption, LpipsOption, WeightsOptions


@dataclass(frozen=True)
class SizeOptions:
    """Images, strips and noise of an analysis."""

    num_images: Annotated[int | None, typer.Option(min=2, help="Held-out images; default: all.")] = None
    num_strips: Annotated[int, typer.Option(min=1, help="Interpolation strips.")] = 6
    seed: Annotated[int, typer.Option(help="Of noise and posterior samples.")] = 0
    lpips_backbone: LpipsOption = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Does not change the numbers.")] = None


def analyze(
    run: Annotated[Path, typer.Argument(help=f"{RUN_HELP}.")],
    data_root: DataRootOption = None,
    *,
    size: SizeOptions,
    weights: WeightsOptions,
) -> None:
    """Analyze a run's latent space on held-out images; writes RUN/analysis/."""
    from simflow_plugin.evaluation.analysis import AnalysisRequest, analyze_run
    from simflow_plugin.evaluation.report.analysis_report import STATISTICS, write_analysis

    loaded = weights.open(run).with_data_root(data_root)
    backbone = None if size.lpips_backbone is None else str(size.lpips_backbone)
    analysis = analyze_run(loaded, AnalysisRequest(**{**vars(size), "lpips_backbone": backbone}))
    page = write_analysis(loaded, analysis)
    for name, title in STATISTICS.items():
        number = analysis.metrics[name]
        typer.echo(f"{title:<32} {number.value:.3f}  {number.low:.3f} to {number.high:.3f}")
    typer.echo(f"{page}")
