"""The HDF5 layout of the REPA-E host: images as PNG files inside `images.h5`, their names beside it.

root/images.h5          data sets such as `00000/img00000000.png`, each the bytes of one file, and
`dataset.json`:
                        {"labels": [["00000/img00000000.png", 207], ...]}
root/images_h5.json     a list of all names in it, groups included
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.disk_cache import file_facts
from simflow_plugin.data.image_files import (
    FileDataset,
    FileOptions,
    choose_labels,
    numbered_classes,
    own_or_held_out,
)
from simflow_plugin.data.images import IMAGE_SUFFIXES, CorruptImage, decode_image
from simflow_plugin.errors import DataError

IMAGES, NAMES, LABELS = "images.h5", "images_h5.json", "dataset.json"


@registry.DATASETS.register("hdf5")
class Hdf5Images(FileDataset):
    """Images in HDF5, read one by one; every process opens the file for itself.

    Raises:
        DataError: if a file of the layout is missing or damaged, or labels are asked for that are not there.
    """

    class Options(FileOptions):
        root: str = Field(description="folder of images.h5 and images_h5.json")
        test_root: str | None = Field(None, description="the same for testing; null: hold a share out")

    def __init__(self, options: Options, context: DataContext) -> None:
        train = Path(options.root).expanduser()
        test = Path(options.test_root).expanduser() if options.test_root is not None else None
        base = test if test is not None and context.split == "test" else train
        names, numbers = read_listing(base)
        labels = choose_labels(str(base), numbers, options.labels)
        num_classes = None
        if labels is not None:
            # The training labels say how many classes there are, whichever split this is.
            num_classes = 1 + max(read_listing(train)[1] or [0]) if base != train else 1 + int(labels.max())
        rows, targets = own_or_held_out(base, len(names), labels, context.split, options, test is not None)
        self.path = base / IMAGES
        self._file: Any = None
        self._owner: int | None = None
        class_names = numbered_classes(num_classes)
        super().__init__([names[row] for row in rows], targets, class_names, context.image_size, options)

    def read_image(self, index: int) -> Image.Image:
        name = self.names[index]
        try:
            stored = np.asarray(self._open()[name][()])
        except (OSError, KeyError) as error:
            raise CorruptImage(f"{self.describe(index)}: {error}") from error
        if name.endswith(".npy"):
            return Image.fromarray(np.ascontiguousarray(stored.transpose(1, 2, 0)))
        return decode_image(stored.tobytes(), self.describe(index))

    def content_facts(self) -> dict[str, Any]:
        file = {"path": str(self.path.resolve()), "bytes_and_time": file_facts(self.path)}
        return super().content_facts() | file

    def describe(self, index: int) -> str:
        return f"{self.path}:{self.names[index]}"

    def _open(self) -> Any:
        import h5py

        # A handle that a fork inherits shares its file position with the parent: reopen in every process.
        if self._owner != os.getpid():
            self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_owner": None}


def read_listing(base: Path) -> tuple[list[str], list[int] | None]:
    """Return the names of all images below `base`, sorted as the host sorts them, and their labels or None.

    Raises:
        DataError: if a file is missing or unreadable, there is no image, or some images have a label and
            others none.
    """
    import h5py

    for file in (IMAGES, NAMES):
        if not (base / file).is_file():
            raise DataError(
                f"{base / file}: missing. Expected the layout of REPA-E's preprocessing: {IMAGES} and "
                f"{NAMES} in data.root."
            )
    try:
        entries = json.loads((base / NAMES).read_text())
        with h5py.File(base / IMAGES, "r") as file:
            listed = json.loads(np.asarray(file[LABELS][()]).tobytes())["labels"] if LABELS in file else None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{base}: {IMAGES} or {NAMES} is damaged: {type(error).__name__}: {error}") from error
    names = sorted(name for name in entries if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES | {".npy"})
    if not names:
        raise DataError(f"{base / NAMES}: lists no image.")
    if not listed:
        return names, None
    label_of = {str(name).replace("\\", "/"): label for name, label in listed}
    missing = [name for name in names if name.replace("\\", "/") not in label_of]
    if missing:
        raise DataError(
            f"{base / IMAGES}: {len(missing)} of {len(names)} images have no label in {LABELS}, such as "
            f"{missing[0]}."
        )
    return names, [int(label_of[name.replace("\\", "/")]) for name in names]
