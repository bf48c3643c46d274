"""`simflow pretrain-encoder --data NAME --out FILE`: an alignment target and judge without a download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simflow_plugin.registry import Part


def pretrain_encoder(
    out: Annotated[Path, typer.Option(help="File to write (.safetensors).")],
    data: Annotated[str, typer.Option(help="A labelled data set by name.")] = "fashion-mnist",
    data_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the data set, as in root=FOLDER."),
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, help="In pixels.")] = 32,
    model: Annotated[
        str | None, typer.Option(help="A vision transformer of timm; default a small one.")
    ] = None,
    patch_size: Annotated[int, typer.Option(min=1, help="In pixels.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0, help="Instead of --steps.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Default 1e-3, 5e-4 with --fine-tune.")
    ] = None,
    fine_tune: Annotated[
        str | None, typer.Option(help="A backbone of timm to start from, such as tf_efficientnet_lite0.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Its published weights; default the local caches and packages.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels at which the backbone sees images; default as is.")
    ] = None,
    horizontal_flip: Annotated[
        bool, typer.Option("--horizontal-flip", help="Mirror every other image.")
    ] = False,
    seed: Annotated[int, typer.Option()] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Train a small vision transformer to classify a data set, or fine-tune a published backbone to do so.

    Its accuracy on the test split is reported, and kept in the file.
    """
    from dataclasses import replace

    from simflow_plugin.alignment.classifier import save_classifier
    from simflow_plugin.alignment.pretraining import PretrainingOptions, pretrain_classifier
    from simflow_plugin.contracts import DataContext
    from simflow_plugin.errors import ConfigError
    from simflow_plugin.registry import DATASETS

    if out.exists() and not overwrite:
        raise ConfigError(f"{out}: exists already. Choose another --out, or add --overwrite.")
    if steps is not None and epochs is not None:
        raise ConfigError("--steps and --epochs both set the length: give one of them.")
    if fine_tune is None and (weights is not None or input_size is not None):
        raise ConfigError("--weights and --input-size: have no effect without --fine-tune. Remove them.")
    if fine_tune is not None and model is not None:
        raise ConfigError(
            "--model builds a network from scratch, --fine-tune starts from one: give one of them."
        )
    part = parse_data(data, data_option or [])
    train, test = (part.build(DATASETS, DataContext(image_size, split, seed)) for split in ("train", "test"))
    options = PretrainingOptions(
        data,
        image_size,
        patch_size=patch_size,
        batch_size=batch_size,
        learning_rate=learning_rate or (1e-3 if fine_tune is None else 5e-4),
        seed=seed,
        fine_tuned=fine_tune,
        weights=None if weights is None else str(weights),
        input_size=input_size,
        horizontal_flip=horizontal_flip,
    )
    if model is not None:
        options = replace(options, model=model, width=None, depth=None, num_heads=None)
    if steps is not None or epochs is not None:
        chosen = steps if steps is not None else max(1, round(float(epochs or 0) * len(train) / batch_size))
        options = replace(options, steps=chosen)
    network, card = pretrain_classifier(
        options, train, test, lambda step, loss: typer.echo(f"step {step}/{options.steps}  loss {loss:.4f}")
    )
    save_classifier(out, network, card)
    typer.echo(
        f"{out}: test accuracy {card.test_accuracy:.2%} on {card.num_test} held-out images of {data}, after "
        f"{options.steps} steps of {batch_size}."
    )


def parse_data(name: str, assignments: list[str]) -> Part:
    """Return the data set `name` with options from `key=value` pairs; values are YAML.

    Raises:
        ConfigError: if there is no such data set, or an option is unknown, wrong or missing.
    """
    from simflow_plugin.config.loading import resolve_part
    from simflow_plugin.config.yaml_source import YamlSource
    from simflow_plugin.registry import DATASETS, Part

    source = YamlSource({}, {}, f"--data {name}")
    for assignment in assignments:
        source.override(assignment, "--data-option")
    return resolve_part(Part.model_validate({**source.values, "name": name}), DATASETS, source, ())
