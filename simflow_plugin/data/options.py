"""Options of the data sets."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from simflow_plugin.contexts import DatasetFacts
from simflow_plugin.local_paths import LocalPath, LocalPathOrName, Shards
from simflow_plugin.options import Options
from simflow_plugin.registry import DATASETS

DEFAULT_MAX_CORRUPT_SHARE = 0.01


class FileOptions(Options):
    """Options that all data sets of files share."""

    labels: bool | Literal["auto"] = Field("auto", description="auto: labelled if the data has labels")
    test_share: float = Field(
        0.05, gt=0, lt=1, description="held out where the data brings no split of its own"
    )
    split_seed: int = Field(0, description="which images are held out; the run's seed does not move them")
    background: str = Field(
        "white", description="a colour name or #rrggbb: what shows through transparent pixels"
    )
    max_corrupt_share: float = Field(
        DEFAULT_MAX_CORRUPT_SHARE,
        ge=0,
        le=1,
        description="of unreadable images; more than that, and more than one, stops the run. 0 allows none",
    )

    @field_validator("background")
    @classmethod
    def _background_is_a_colour(cls, value: str) -> str:
        from PIL import ImageColor

        if len(ImageColor.getrgb(value)) != 3:
            raise ValueError(f"`{value}`: a background cannot be transparent itself")
        return value


class FashionMnistOptions(Options):
    """Options of `fashion-mnist`."""

    root: LocalPath | None = Field(
        None, description="folder of the four idx files (.gz or not); null: search"
    )
    download: bool = Field(False, description="fetch them by torchvision when they are found nowhere")


class DigitsOptions(Options):
    """Options of `digits`, scikit-learn's."""

    test_share: float = Field(0.2, gt=0, lt=1, description="of every class, held out for evaluation")
    split_seed: int = Field(0, description="which images are held out; the run's seed does not move them")


@DATASETS.declare("fashion-mnist", "simflow_plugin.data.fashion_mnist")
class FashionMnistFacts(DatasetFacts):
    """Facts of `fashion-mnist`."""

    Options: ClassVar[type[Options]] = FashionMnistOptions
    known_num_classes = 10


@DATASETS.declare("digits", "simflow_plugin.data.digits")
class DigitsFacts(DatasetFacts):
    """Facts of `digits`."""

    Options: ClassVar[type[Options]] = DigitsOptions
    known_num_classes = 10


@DATASETS.declare("webdataset", "simflow_plugin.data.webdataset")
class WebDatasetOptions(FileOptions):
    """Options of `webdataset`: images in tar files."""

    shards: Shards = Field(
        description="paths, globs, addresses (http, https, file; pipe:command with "
        "--allow-pipes); {0000..0012} is a range"
    )
    test_shards: Shards | None = Field(None, description="the same for testing; null: hold a share out")
    image_member: str | None = Field(
        None,
        description="ending of the member that is the image, `jpg` or `seg.png`; null: the one that ends like one",
    )
    cache: str | None = Field(None, description="folder for fetched shards and indices; null: the usual one")


@DATASETS.declare("huggingface", "simflow_plugin.data.huggingface")
class HuggingFaceOptions(FileOptions):
    """Options of `huggingface`: a data set of the `datasets` library."""

    path: LocalPathOrName = Field(description="name on the hub, or a folder written by save_to_disk")
    subset: str | None = Field(None, description="the hub's configuration name")
    train_split: str = Field("train", description="name of the split to train on")
    test_split: str | None = Field(None, description="null: hold a share of the training split out")
    image_column: str | None = Field(None, description="null: the only column of images")
    label_column: str | None = Field(
        None, description="null: the only column of class labels, or one called `label`, `class`, ..."
    )


@DATASETS.declare("image_folder", "simflow_plugin.data.image_folder")
class ImageFolderOptions(FileOptions):
    """Options of `image_folder`: one subfolder per class, or images alone."""

    root: LocalPath = Field(description="the folder")
    train_folder: str | None = Field(
        None,
        description="folder of the training images below root; `.`: root itself, every folder a class; null: "
        "`train` where it lies alone or beside test, val, valid or validation, else root",
    )
    test_folder: str | None = Field(
        None, description="folder of the test images below root; null: found beside `train`, or a share"
    )


@DATASETS.declare("hdf5", "simflow_plugin.data.hdf5")
class Hdf5Options(FileOptions):
    """Options of `hdf5`, the layout of REPA and REPA-E."""

    root: LocalPath = Field(description="folder of images.h5 and images_h5.json")
    test_root: LocalPath | None = Field(None, description="the same for testing; null: hold a share out")
