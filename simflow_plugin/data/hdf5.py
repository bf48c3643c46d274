"""The HDF5 layout of the REPA-E host: images as PNG files inside `images.h5`, their names beside it.

root/images.h5          data sets such as `00000/img00000000.png`, each the bytes of one file, and
`dataset.json`:
                        {"labels": [["00000/img00000000.png", 207], ...]}
root/images_h5.json     a list of all names in it, groups included
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.decoding import MAX_FILE_BYTES, CorruptImage
from simflow_plugin.data.disk_cache import file_facts
from simflow_plugin.data.image_files import FileDataset, ListedImages
from simflow_plugin.data.image_formats import is_image_name, suffix_of, unread_kind
from simflow_plugin.data.labels import Key, parse_label, shown
from simflow_plugin.data.options import Hdf5Options
from simflow_plugin.errors import DataError

IMAGES, NAMES, LABELS = "images.h5", "images_h5.json", "dataset.json"
ARRAY = ".npy"


@registry.DATASETS.register("hdf5")
class Hdf5Images(FileDataset):
    """Images in HDF5, read one by one; every process opens the file for itself.

    Raises:
        DataError: if a file of the layout is missing or damaged, a label cannot be read, or labels are asked for that
            are not there.
    """

    Options = Hdf5Options

    def __init__(self, options: Hdf5Options, context: DataContext) -> None:
        train = Path(options.root).expanduser()
        test = Path(options.test_root).expanduser() if options.test_root is not None else None
        if test is not None and test.resolve() == train.resolve():
            raise DataError(
                f"{test}: data.root and data.test_root: it would be tested on what was trained on."
            )
        base = test if test is not None and context.split == "test" else train
        entries = read_names(base)
        names = sorted(name for name in entries if _is_image(name))
        if not names:
            raise DataError(f"{base / NAMES}: lists no image.")
        keys = training = read_labels(base, names) if options.labels is not False else None
        if base != train and options.labels is not False:
            training = read_labels(train, [name for name in read_names(train) if _is_image(name)])
        others = (suffix_of(name) for name in entries if not _is_image(name) and name != LABELS)
        ignored = Counter(unread_kind(suffix) for suffix in others if suffix)
        self.path = base / IMAGES
        self._file: Any = None
        self._owner: int | None = None
        self._plain_groups: set[str] = set()
        super().__init__(
            ListedImages(str(base), names, keys, training, test is not None, ignored=ignored),
            options,
            context,
        )

    def read_image(self, index: int) -> Image.Image:
        if not self.names[index].endswith(ARRAY):
            return super().read_image(index)
        pixels = self._read(index)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
            raise CorruptImage(
                f"{self.describe(index)}: an array of {pixels.dtype} {pixels.shape}, expected uint8 (3, H, W)."
            )
        channels = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
        return Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0)))

    def read_content(self, index: int) -> bytes:
        stored = self._read(index)
        if stored.dtype.kind == "O" and stored.ndim == 0 and isinstance(stored.item(), (bytes, str)):
            text = stored.item()
            return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        if stored.dtype.kind not in "SVu" or (stored.dtype.kind == "u" and stored.dtype != np.uint8):
            raise CorruptImage(
                f"{self.describe(index)}: {stored.dtype} {stored.shape}, expected the bytes of one file."
            )
        return stored.tobytes()

    def _read(self, index: int) -> np.ndarray:
        """Return what is stored under the name of an image.

        Raises:
            CorruptImage: if there is nothing, a group, a link to another file, or more than an image holds.
        """
        name = self.names[index]
        try:
            file = self._open()
            self._refuse_links(file, name)
            entry = file[name]
            if not isinstance(entry, h5py.Dataset):
                raise CorruptImage(
                    f"{self.describe(index)}: a {type(entry).__name__.lower()}, expected a data set"
                )
            if entry.shape is None or entry.nbytes > MAX_FILE_BYTES:
                size = "nothing" if entry.shape is None else f"{entry.nbytes} bytes"
                raise CorruptImage(f"{self.describe(index)}: holds {size}, expected the bytes of one image")
            value = entry[()]
            # NumPy would drop zeros at the end of bytes.
            return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.asarray(value)
        except CorruptImage:
            raise
        # h5py raises OSError, KeyError, RuntimeError, TypeError, ... for damaged files.
        except Exception as error:
            raise CorruptImage(f"{self.describe(index)}: {type(error).__name__}: {error}") from error

    def _refuse_links(self, file: Any, name: str) -> None:
        """Refuse names that lead into another file: it is not what was described, and may not be there to-morrow."""
        parts = name.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if path in self._plain_groups:
                continue
            link = file.get(path, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise CorruptImage(
                    f"{self.path}:{name}: an external link to {link.filename}. Copy the images into {IMAGES}."
                )
            if depth < len(parts):
                self._plain_groups.add(path)

    def content_facts(self) -> dict[str, Any]:
        file = {"path": str(self.path.resolve()), "bytes_and_time": file_facts(self.path)}
        return super().content_facts() | file

    def describe(self, index: int) -> str:
        return f"{self.path}:{self.names[index]}"

    def _open(self) -> Any:
        # A handle that a fork inherits shares its file position with the parent: reopen in every process.
        if self._owner != os.getpid():
            self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_owner": None}


def _is_image(name: str) -> bool:
    return is_image_name(name) or suffix_of(name) == ARRAY


def read_names(base: Path) -> list[str]:
    """Return all names that the listing beside the images holds.

    Raises:
        DataError: if a file of the layout is missing, or the listing is no list of names.
    """
    for file in (IMAGES, NAMES):
        if not (base / file).is_file():
            raise DataError(
                f"{base / file}: missing. Expected the layout of REPA-E's preprocessing: {IMAGES} and "
                f"{NAMES} in data.root."
            )
    try:
        content = (base / NAMES).read_bytes()
    except OSError as error:
        raise DataError(f"{base / NAMES}: cannot be read: {error}") from error
    entries = _parsed(content, base / NAMES)
    _check_list(entries, _is_name, "names", base / NAMES)
    twice = next((name for name, count in Counter(entries).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{base / NAMES}: lists {twice} twice. Write it anew.")
    return entries


def read_labels(base: Path, names: list[str]) -> list[Key] | None:
    """Return the labels of the images `names`, or None if the file has none.

    Raises:
        DataError: if a label is no integer, naming the image; if images have none, or two.
    """
    place = f"{base / IMAGES}:{LABELS}"
    try:
        with h5py.File(base / IMAGES, "r") as file:
            stored = file[LABELS][()] if LABELS in file else b"{}"
        content = stored if isinstance(stored, bytes) else np.asarray(stored).tobytes()
    # h5py raises OSError, KeyError, RuntimeError, TypeError, ... for damaged files.
    except Exception as error:
        raise DataError(f"{base}: {IMAGES} is damaged: {type(error).__name__}: {error}") from error
    document = _parsed(content, place)
    if not isinstance(document, dict):
        raise DataError(f"{place}: holds {shown(document)}, expected a mapping with `labels`. Write it anew.")
    listed = document.get("labels")
    if not listed:
        return None
    _check_list(listed, _is_pair, "[name, label]", f"{place}: `labels`")
    label_of: dict[str, Key] = {}
    for written, value in listed:
        name = written.replace("\\", "/")
        label = parse_label(value, f"{place}: {name}", texts=False)
        if label_of.setdefault(name, label) != label:
            raise DataError(f"{place}: {name} has two labels, {label_of[name]} and {label}. Write it anew.")
    keys = [name.replace("\\", "/") for name in names]
    missing = [key for key in keys if key not in label_of]
    if missing:
        raise DataError(
            f"{base / IMAGES}: {len(missing)} of {len(names)} images have no label in {LABELS}, such as {missing[0]}."
        )
    return [label_of[key] for key in keys]


def _parsed(content: bytes, place: Path | str) -> Any:
    """Return what JSON holds. Python's parser reads names with a lone surrogate, which pydantic's does not."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: damaged: {type(error).__name__}: {error}. Write it anew.") from error


def _check_list(listed: Any, is_entry: Callable[[Any], bool], entries: str, place: Path | str) -> None:
    if not isinstance(listed, list):
        raise DataError(f"{place}: holds {shown(listed)}, expected a list of {entries}. Write it anew.")
    for number, entry in enumerate(listed):
        if not is_entry(entry):
            raise DataError(
                f"{place}: entry {number} is {shown(entry)}, expected a list of {entries}. Write it anew."
            )


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
