"""`simflow pretrain-encoder --data NAME --out FILE`: an alignment target and judge without a download."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simflow_plugin.cli.run_options import OverwriteOption

if TYPE_CHECKING:
    from simflow_plugin.alignment.pretraining import PretrainingOptions


@dataclass(frozen=True)
class DataOptions:
    """Images to learn from."""

    data: Annotated[
        str, typer.Option(help="A labelled data set: name, folder of images, or YAML mapping.")
    ] = "fashion-mnist"
    data_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the data set, as in root=FOLDER."),
    ] = None
    image_size: Annotated[int, typer.Option(min=8, help="In pixels.")] = 32
    horizontal_flip: Annotated[bool, typer.Option("--horizontal-flip", help="Mirror every other image.")] = (
        False
    )


@dataclass(frozen=True)
class NetworkOptions:
    """A network from scratch, or a published one to start from."""

    model: Annotated[str | None, typer.Option(help="A vision transformer of timm; default a small one.")] = (
        None
    )
    patch_size: Annotated[int, typer.Option(min=1, help="In pixels.")] = 4
    fine_tune: Annotated[
        str | None, typer.Option(help="A backbone of timm to start from, such as tf_efficientnet_lite0.")
    ] = None
    weights: Annotated[
        Path | None, typer.Option(help="Its published weights; default the local caches and packages.")
    ] = None
    input_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels at which the backbone sees images; default as is.")
    ] = None


@dataclass(frozen=True)
class ScheduleOptions:
    """Length and rate of the training."""

    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None
    epochs: Annotated[float | None, typer.Option(min=0, help="Instead of --steps.")] = None
    batch_size: Annotated[int, typer.Option(min=1)] = 128
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Default 1e-3, 5e-4 with --fine-tune.")
    ] = None
    seed: Annotated[int, typer.Option()] = 0


def pretrain_encoder(
    out: Annotated[Path, typer.Option(help="File to write (.safetensors).")],
    overwrite: OverwriteOption = False,
    *,
    images: DataOptions,
    network: NetworkOptions,
    schedule: ScheduleOptions,
) -> None:
    """Train a small vision transformer to classify a data set, or fine-tune a published backbone to do so.

    Its accuracy on the test split is reported, and kept in the file.
    """
    from simflow_plugin.alignment.classifier import save_classifier
    from simflow_plugin.alignment.pretraining import pretrain_classifier
    from simflow_plugin.config.loading import resolve_data
    from simflow_plugin.contracts import DataContext
    from simflow_plugin.evaluation.sample_files import check_not_there
    from simflow_plugin.registry import DATASETS

    check_not_there(out, overwrite)
    _check_effects(network, schedule)
    part = resolve_data(images.data, "--data", images.data_option or [], prefers_names=True)
    train, test = (
        part.build(DATASETS, DataContext(images.image_size, split, schedule.seed))
        for split in ("train", "test")
    )
    options = _pretraining(part.name, images, network, schedule, len(train))
    trained, card = pretrain_classifier(
        options, train, test, lambda step, loss: typer.echo(f"step {step}/{options.steps}  loss {loss:.4f}")
    )
    save_classifier(out, trained, card)
    typer.echo(
        f"{out}: test accuracy {card.test_accuracy:.2%} on {card.num_test} held-out images of {images.data}, after "
        f"{options.steps} steps of {schedule.batch_size}."
    )


def _check_effects(network: NetworkOptions, schedule: ScheduleOptions) -> None:
    from simflow_plugin.errors import ConfigError

    if schedule.steps is not None and schedule.epochs is not None:
        raise ConfigError("--steps and --epochs both set the length: give one of them.")
    if network.fine_tune is None and (network.weights is not None or network.input_size is not None):
        raise ConfigError("--weights and --input-size: have no effect without --fine-tune. Remove them.")
    if network.fine_tune is not None and network.model is not None:
        raise ConfigError(
            "--model builds a network from scratch, --fine-tune starts from one: give one of them."
        )


def _pretraining(
    data: str, images: DataOptions, network: NetworkOptions, schedule: ScheduleOptions, num_images: int
) -> PretrainingOptions:
    from simflow_plugin.alignment.pretraining import PretrainingOptions

    options = PretrainingOptions(
        data,
        images.image_size,
        patch_size=network.patch_size,
        batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate or (1e-3 if network.fine_tune is None else 5e-4),
        seed=schedule.seed,
        fine_tuned=network.fine_tune,
        weights=None if network.weights is None else str(network.weights),
        input_size=network.input_size,
        horizontal_flip=images.horizontal_flip,
    )
    if network.model is not None:
        options = replace(options, model=network.model, width=None, depth=None, num_heads=None)
    if schedule.steps is not None:
        return replace(options, steps=schedule.steps)
    if schedule.epochs is not None:
        return replace(options, steps=max(1, round(schedule.epochs * num_images / schedule.batch_size)))
    return options
