"""The built-in data sets by name, with their options."""

from __future__ import annotations

from simflow_plugin.data.options import (
    DigitsFacts,
    FashionMnistFacts,
    Hdf5Options,
    HuggingFaceOptions,
    ImageFolderOptions,
    WebDatasetOptions,
)
from simflow_plugin.registry import DATASETS

DATASETS.declare("digits", "simflow_plugin.data.digits", DigitsFacts)
DATASETS.declare("fashion-mnist", "simflow_plugin.data.fashion_mnist", FashionMnistFacts)
DATASETS.declare("hdf5", "simflow_plugin.data.hdf5", Hdf5Options)
DATASETS.declare("huggingface", "simflow_plugin.data.huggingface", HuggingFaceOptions)
DATASETS.declare("image_folder", "simflow_plugin.data.image_folder", ImageFolderOptions)
DATASETS.declare("webdataset", "simflow_plugin.data.webdataset", WebDatasetOptions)
