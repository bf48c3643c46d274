"""Samples of a run to a file: `.npz` in the layout of the ADM evaluation suite, or a folder of PNG files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.drawing import balanced_labels, draw_many
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.runs.loaded_run import load_run


def sample_run(
    path: Path,
    num: int,
    guidance: float | None,
    seed: int,
    batch_size: int | None = None,
    ema_length: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw class-balanced samples from the averaged weights of a run.

    Args:
        path: run directory.
        num: of samples.
        guidance: weight w >= 0; None takes the run's own.
        seed: of the noise.
        batch_size: None takes the run's own; it does not change the samples.
        ema_length: relative length of the average; None takes the run's own.
    Returns:
        Images uint8 (num, H, W, 3) and labels (num,) int64, `NO_LABEL` where the data has none.
    Raises:
        ConfigError: if guidance is asked of a model that has no unconditional half.
    """
    loaded = load_run(path, ema_length=ema_length)
    model = loaded.require_model()
    weight = loaded.config.sampling.guidance if guidance is None else guidance
    if weight > 0 and not model.supports_guidance:
        raise ConfigError(
            f"{path}: guidance {weight} needs a model trained with labels and label dropout; use --guidance 0."
        )
    labels = balanced_labels(num, loaded.num_classes)
    with count_progress("sampling", num) as advance:
        images = draw_many(
            loaded.autoencoder,
            model,
            labels,
            weight,
            seed,
            loaded.config.image_size,
            batch_size or loaded.config.sampling.batch_size,
            advance,
        )
    return images, labels


def check_out(out: Path, option: str = "--out") -> None:
    """Refuse a place for samples before they are drawn.

    Args:
        out: where to.
        option: as the user knows it.
    Raises:
        ConfigError: if `out` is neither a `.npz` name nor a folder that is new or empty.
    """
    if out.suffix == ".npz":
        if out.is_dir():
            raise ConfigError(
                f"{option} {out}: is a folder. Name a file that ends in .npz, or another folder."
            )
        return
    if out.suffix or out.is_file():
        raise ConfigError(f"{option} {out}: expected a name that ends in .npz, or a folder for PNG files.")
    try:
        is_used = out.is_dir() and any(out.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{option} {out}: cannot be read ({error.strerror}). Name another folder."
        ) from error
    if is_used:
        raise ConfigError(
            f"{option} {out}: holds files already, which would mix with the samples. Name a new or an empty folder."
        )


def save_samples(out: Path, images: Tensor, labels: Tensor) -> None:
    """Write samples to `out`: one `.npz` file, which is replaced, or PNG files named by index and class in a folder.

    Raises:
        ConfigError: if `out` is neither a `.npz` name nor a folder that is new or empty, or cannot be written.
    """
    check_out(out)
    try:
        if out.suffix == ".npz":
            _save_npz(out, images, labels)
        else:
            _save_png(out, images, labels)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: cannot be written ({error.strerror or error}). Name another place."
        ) from error


def _save_npz(out: Path, images: Tensor, labels: Tensor) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.writing")
    try:
        with aside.open("wb") as file:
            np.savez(file, arr_0=images.numpy(), labels=labels.numpy())
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


def _save_png(out: Path, images: Tensor, labels: Tensor) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        name = f"{index:06d}.png" if label < 0 else f"{index:06d}_class{label}.png"
        Image.fromarray(image.numpy()).save(out / name)
