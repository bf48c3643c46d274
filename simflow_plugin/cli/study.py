"""`simflow study NAME`: several runs with equal budgets, and their table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simflow_plugin.studies.definitions import Study
    from simflow_plugin.studies.stages import StudySettings


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="fixed_variance, headline, sigma, latent_width, or cifar/ and fixed_variance, headline, alignment, "
            "conditions."
        ),
    ],
    budget: Annotated[float, typer.Option(help="Factor on the steps and warm-up of every run alike.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Directory; default runs/studies/NAME.")] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="The judge, of `simflow pretrain-encoder`; default the study's own, see its table."
        ),
    ] = None,
    num_samples: Annotated[int, typer.Option(min=2, help="Of each variant, for each guidance.")] = 2000,
    num_held_out: Annotated[int, typer.Option(min=1, help="Images for reconstruction, likelihood.")] = 1000,
    seed: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Of every run; several (each in OUT/seed_N) end in a table over seeds."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of every run alike: data.root=FOLDER."),
    ] = None,
) -> None:
    """Train what the study needs, measure every variant, print the table; the same command again continues.

    The directory gets study.md, study.json and one page of `simflow compare` for each guidance.
    """
    from simflow_plugin.runs.run_directory import write_text_atomically
    from simflow_plugin.studies.definitions import find_study
    from simflow_plugin.studies.stages import StudySettings
    from simflow_plugin.studies.table import seeds_table, to_markdown

    found = find_study(name)
    directory = out if out is not None else Path("runs/studies") / found.name
    seeds: list[int | None] = list(dict.fromkeys(seed)) if seed else [None]
    documents = {}
    for one in seeds:
        settings = StudySettings(
            directory if len(seeds) == 1 else directory / f"seed_{one}",
            encoder if encoder is not None else Path(found.encoder),
            budget,
            num_samples,
            num_held_out,
            tuple(set_ or ()),
            one,
            found.extractor,
        )
        documents[one or 0] = _run_one(found, settings)
        typer.echo(to_markdown(found, documents[one or 0]))
    if len(documents) > 1:
        table = seeds_table(found, documents)
        write_text_atomically(directory / "seeds.md", table)
        typer.echo(table)


def _run_one(study: Study, settings: StudySettings) -> dict[str, Any]:
    """Run a study with one seed and write its pages; return the content of its study.json."""
    from simflow_plugin.cli.compare import compare
    from simflow_plugin.studies.runner import StudyRunner
    from simflow_plugin.training.interrupts import announced_stop

    with announced_stop():
        document = StudyRunner(study, settings).run()
    runs = [settings.out / "runs" / variant.name for variant in study.variants]
    for guidance in study.guidance:
        compare(runs, settings.out / f"comparison_guidance_{guidance:g}", guidance, 0, 3, False)
    return document
