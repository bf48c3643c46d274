"""Small data sets on disk, made by the tests that need them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CORRUPT = b"\x89PNG\r\n\x1a\n this is no image"


def picture(value: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    """A grey picture whose pixels are all `value`."""
    return Image.new("RGB", size, (value, value, value))


def png(value: int, size: tuple[int, int] = (20, 20)) -> bytes:
    """The bytes of such a picture."""
    buffer = io.BytesIO()
    picture(value, size).save(buffer, format="PNG")
    return buffer.getvalue()


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    """root/<class>/<number>.png; the grey value counts up over all images."""
    value = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03d}.png").write_bytes(png(value))
            value += 1
    return root


def write_idx(path: Path, values: np.ndarray) -> None:
    """A compressed idx file."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def fashion_folder(root: Path, num: int = 12) -> Path:
    """The four files of Fashion-MNIST with `num` images each."""
    for prefix in ("train", "t10k"):
        images = np.arange(num)[:, None, None] * np.ones((num, 28, 28))
        write_idx(root / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(root / f"{prefix}-labels-idx1-ubyte.gz", np.arange(num) % 10)
    return root


def write_hdf5(root: Path, contents: list[bytes], labels: list[int] | None) -> Path:
    """The layout that the REPA-E host's preprocessing writes."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    names = [f"00000/img{number:08d}.png" for number in range(len(contents))]
    listing = {"labels": [list(pair) for pair in zip(names, labels or [], strict=False)]}
    with h5py.File(root / "images.h5", "w") as file:
        for name, content in zip(names, contents, strict=True):
            file.create_dataset(name, data=np.array(content, dtype="S"))
        file.create_dataset("dataset.json", data=np.array(json.dumps(listing).encode(), dtype="S"))
    (root / "images_h5.json").write_text(json.dumps(["00000", *names, "dataset.json"]))
    return root


def write_members(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar file of (name, content), in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shard(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    """A tar file of (key, content by suffix)."""
    members = [(f"{key}.{end}", content) for key, sample in samples for end, content in sample.items()]
    return write_members(path, members)


def numbered_shard(path: Path, values: range) -> Path:
    """A shard of labelled pictures: grey value v, class v mod 2."""
    return write_shard(path, [(f"{v:04d}", {"png": png(v), "cls": str(v % 2).encode()}) for v in values])
