"""Facts of a folder of images that a first configuration depends on."""

from __future__ import annotations

import io
import statistics
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.image_folder import ImageFolder
from simflow_plugin.data.order import sample_rows
from simflow_plugin.data.summary import DataSummary, summarize
from simflow_plugin.errors import DataError, EmptySplit

NUM_LOOKED_AT = 64
LOOK_SIZE = 32
"""Pixels at which colours are compared."""
TEST_SHARES = (0.05, 0.1, 0.2, 0.5)
"""Tried in turn; the first that holds out enough images is taken."""
ENOUGH_TEST_IMAGES = 20


@dataclass(frozen=True)
class FolderFacts:
    """A folder as it was found.

    Args:
        root: absolute.
        summary: images, classes, splits.
        labels: whether its subfolders are classes that can be conditioned on.
        test_share: held out where the folder has no test split.
        short_sides: shorter sides in pixels of the images looked at.
        is_grey: whether all of these are grey.
    """

    root: Path
    summary: DataSummary
    labels: bool
    test_share: float
    short_sides: tuple[int, ...]
    is_grey: bool

    @property
    def num_train(self) -> int:
        return self.summary.splits["train"].num_images

    @property
    def num_test(self) -> int:
        return self.summary.splits["test"].num_images

    @property
    def num_classes(self) -> int:
        return len(self.summary.class_names or ())

    def lines(self) -> list[str]:
        """Return the facts for a reader."""
        low, middle, high = min(self.short_sides), statistics.median(self.short_sides), max(self.short_sides)
        colour = "grey" if self.is_grey else "colour"
        sizes = f"{low} pixels" if low == high else f"{low} to {high} pixels, median {middle:.0f}"
        looked = f"  {len(self.short_sides)} images looked at: {colour}, shorter side {sizes}"
        return [*self.summary.lines(), looked]


def look_at(folder: Path) -> FolderFacts:
    """Read a folder as training will.

    Raises:
        DataError: if it holds no readable image, too few to hold one out, or it is unclear what are its classes.
    """
    root = folder.expanduser().resolve()
    labels: bool | str = "auto"
    try:
        train = _open(root, "train", labels, TEST_SHARES[0])
    except DataError as error:
        if "one class" not in str(error):
            raise
        labels = False  # a single subfolder, as an archive unpacks: nothing to condition on
    train, test, share = _splits(root, labels)
    summary = summarize("image_folder", train, test)
    sides, greys = [], []
    for row in sample_rows(len(train), NUM_LOOKED_AT):
        try:
            pixels = train[row].image
            content = train.read_content(row)
        except CorruptImage:
            continue  # counted and named by the summary
        with Image.open(io.BytesIO(content)) as image:
            sides.append(min(image.size))
        greys.append(bool((pixels[0] == pixels[1]).all() and (pixels[1] == pixels[2]).all()))
    return FolderFacts(root, summary, train.num_classes is not None, share, tuple(sides), all(greys))


def _splits(root: Path, labels: bool | str) -> tuple[ImageFolder, ImageFolder, float]:
    for share in TEST_SHARES:
        try:
            test = _open(root, "test", labels, share)
        except EmptySplit:
            continue
        if len(test) >= ENOUGH_TEST_IMAGES or share == TEST_SHARES[-1]:
            return _open(root, "train", labels, share), test, share
    raise DataError(f"{root}: too few images to hold one out for testing. Add images.")


def _open(root: Path, split: str, labels: bool | str, share: float) -> ImageFolder:
    options = ImageFolder.Options.model_validate({"root": str(root), "labels": labels, "test_share": share})
    return ImageFolder(options, DataContext(LOOK_SIZE, split, 0))
