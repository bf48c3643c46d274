"""Samples as files for others: `.npz` in the layout of the ADM evaluation suite, or a folder of PNG files."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simflow_plugin.errors import ConfigError, RunDirectoryError
from simflow_plugin.evaluation.report.grids import save_image_grid
from simflow_plugin.files import filling, replacing

Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (B, H, W, 3) and their labels (B,), `NO_LABEL` for none."""

MAX_NAME_LENGTH = 60
"""Characters of a class's name in the name of a file."""


def check_out(out: Path, option: str = "--out", overwrite: bool = True) -> None:
    """Refuse a place for samples before they are drawn.

    Args:
        overwrite: replace a `.npz` file that is there already.
    Raises:
        ConfigError: if `out` is neither a `.npz` name nor a folder that is new or empty.
    """
    if out.suffix == ".npz":
        check_not_there(out, overwrite, option)
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


def save_grid(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str] | None
) -> None:
    """Write samples as one picture, a row for each class with its name; a square where there are no classes.

    Args:
        path: ends in .png.
        images: (N, H, W, 3).
        labels: (N,), `NO_LABEL` for none.
        class_names: by label; None names classes by their numbers.
    Raises:
        ConfigError: if it cannot be written.
    """
    classes = list(dict.fromkeys(labels[labels >= 0].tolist()))
    columns, names, order = math.isqrt(len(images) - 1) + 1, None, np.arange(len(images))
    if classes:
        by_class = [np.flatnonzero(labels == label) for label in classes]
        # The samples of a round that did not reach every class are left out.
        columns = min(map(len, by_class))
        order = np.concatenate([rows[:columns] for rows in by_class])
        names = [class_names[label] if class_names is not None else str(label) for label in classes]
    try:
        save_image_grid(images[order], path, columns, names)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--grid {path}: cannot be written ({reason}). Name another place.") from error


def check_not_there(out: Path, overwrite: bool, option: str = "--out") -> None:
    """Refuse a file that is there already, perhaps the work of an hour, unless `overwrite` is set.

    Raises:
        ConfigError: naming the option; also for a folder, which nothing replaces.
    """
    if out.is_dir():
        raise ConfigError(f"{option} {out}: is a folder. Name a file.")
    if out.is_file() and not overwrite:
        raise ConfigError(f"{option} {out}: is there already. Name another file, or add --overwrite.")


def save_samples(
    out: Path,
    num: int,
    batches: Iterable[Samples],
    option: str = "--out",
    class_names: Sequence[str] | None = None,
) -> None:
    """Write samples to `out`: one `.npz` file, which is replaced, or PNG files named by index and class in a folder.

    A batch at a time, so that 50,000 images need no memory.

    Args:
        class_names: by label; None names classes by their numbers.
    Raises:
        ConfigError: if `out` is neither a `.npz` name nor a folder that is new or empty, or cannot be written.
    """
    check_out(out, option)
    try:
        if out.suffix == ".npz":
            with replacing(out) as part:
                _write_npz(part, num, batches)
        else:
            with filling(out) as folder:
                _write_png(folder, batches, class_names)
    except (OSError, RunDirectoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option} {out}: cannot be written ({reason}). Name another place.") from error


def _write_npz(path: Path, num: int, batches: Iterable[Samples]) -> None:
    """Write `arr_0`, uint8 NHWC, and `labels`."""
    labels = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
            for number, (images, of) in enumerate(batches):
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (num, *images.shape[1:])}
                    np.lib.format.write_array_header_2_0(entry, header)
                entry.write(np.ascontiguousarray(images).tobytes())
                labels.append(of)
        with archive.open("labels.npy", "w") as entry:
            np.lib.format.write_array(entry, np.concatenate(labels))


def _write_png(folder: Path, batches: Iterable[Samples], class_names: Sequence[str] | None) -> None:
    index = 0
    for images, labels in batches:
        for image, label in zip(images, labels.tolist(), strict=True):
            suffix = f"_{file_name_of_class(label, class_names)}" if label >= 0 else ""
            Image.fromarray(image).save(folder / f"{index:06d}{suffix}.png")
            index += 1


def file_name_of_class(label: int, class_names: Sequence[str] | None) -> str:
    """Return a class's name as a part of a file name; `class3` where it has none but its number."""
    name = class_names[label] if class_names is not None else str(label)
    if name == str(label):
        return f"class{label}"
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")[:MAX_NAME_LENGTH] or f"class{label}"
