"""Published numbers of papers, shown in a separate block beside the measured ones.

Read in the papers or in what their authors publish beside them; what was not found there stays empty, as `—`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.evaluation.report.html import Cell, Table

SIMFLOW, MIMFLOW = "arXiv:2512.04084", "arXiv:2606.26016"
COLUMNS = (
    "method",
    "gFID ↓",
    "gFID without guidance ↓",
    "rFID ↓",
    "PSNR, dB ↑",
    "epochs",
    "parameters",
    "paper",
)
IMAGENET_256: tuple[tuple[str | Cell, ...], ...] = (
    ("FlowBack", "4.18", "—", "—", "—", "—", "—", "arXiv:2511.22345"),
    ("SimFlow-L", "3.72", "33.53", "—", "—", "—", "475M", Cell(SIMFLOW, f"measured in {MIMFLOW}")),
    ("FARMER", "3.60", "—", "—", "—", "—", "1.9B", "arXiv:2510.23588"),
    ("MIMFlow-L", "2.50", "3.64", "—", "—", "90", "482M", MIMFLOW),
    ("STARFlow", "2.40", "—", "2.73", "—", "320", "1.4B", Cell("arXiv:2506.06276", f"measured in {SIMFLOW}")),
    ("BiFlow (one pass)", "2.39", "—", "—", "—", "—", "133M", "arXiv:2512.10953"),
    ("DiT-XL/2", "2.27", "9.62", "—", "—", "—", "675M", "arXiv:2212.09748"),
    (
        "SimFlow",
        Cell("2.15", "IS 276.8, P 0.83, R 0.57"),
        Cell("13.72", "IS 105.2, P 0.67, R 0.62"),
        *("1.21", "23.07", "160", "1.4B", SIMFLOW),
    ),
    ("SiT-XL/2", "2.06", "8.61", "—", "—", "—", "675M", "arXiv:2401.08740"),
    (
        "SimFlow + REPA-E",
        Cell("1.91", "IS 284.4, P 0.82, R 0.60"),
        Cell("10.13", "IS 124.7, P 0.71, R 0.61"),
        *("1.08", "23.17", "160", "1.4B", SIMFLOW),
    ),
    ("SRC-Flow", "1.65", "8.40", "—", "—", "320", "1.4B", "arXiv:2605.18267"),
    ("RAE (DiT-DH-XL)", "1.13", "1.51", "—", "—", "—", "839M", "arXiv:2510.11690"),
    ("REPA-E (SiT-XL/2)", "1.12", "1.69", "—", "—", "—", "675M", "arXiv:2504.10483"),
)
"""Scores of 50,000 samples against the training set; below a paper another one that measured it, where there is one."""
IMAGENET_512: tuple[tuple[str | Cell, ...], ...] = (
    ("STARFlow", "3.00", "—", "—", "—", "—", "1.4B", "arXiv:2506.06276"),
    ("SimFlow + REPA-E", "2.74", "—", "—", "—", "—", "1.4B", SIMFLOW),
)
NOTE = (
    "Published by others on ImageNet; nothing in this block was measured here. A dash: not stated, or not found. "
    "IS, P, R: Inception score, precision, recall."
)
NUM_CLASSES = 1000
WORDNET_ID = re.compile(r"n\d{8}")
FIRST_WORDS = frozenset({"imagenet", "imagenet1k", "imagenet2012", "ilsvrc", "ilsvrc12", "ilsvrc2012"})
OTHER_WORDS = FIRST_WORDS | {
    *("1k", "12", "2012", "cls", "clsloc", "loc"),
    *(f"{size}{rest}" for size in (64, 128, 256, 512) for rest in ("", f"x{size}")),
    *("h5", "hdf5", "jpeg", "lmdb", "npy", "parquet", "png", "tar", "wds", "webdataset", "zip"),
    *("img", "image", "images", "latents", "resized", "train", "training", "val"),
}
"""Words of a name of ImageNet-1k beside a first one: `imagenet-1k`, `ILSVRC2012_img_train.tar`. Any other word makes a
relative of it, with other images: `imagenet-a`, `imagenet_sketch`, `not_imagenet`, `imagenet-22k`."""
SHARD_NUMBER = re.compile(r"\d{4,}")


def is_imagenet(config: RunConfig, num_classes: int | None, class_names: Sequence[str] | None) -> bool:
    """Return whether a run seems to be trained on ImageNet-1k: 1000 classes, and the names of classes or data.

    Names of classes that are all different and shaped like WordNet's numbers pass, without a look at which they are: of
    1000 other classes of ImageNet-21k it would be true too. Of the data, one component of a path or name has to be
    one of ImageNet-1k's usual names.
    """
    if num_classes != NUM_CLASSES:
        return False
    if class_names is not None and all(WORDNET_ID.fullmatch(name) for name in class_names):
        return len(set(class_names)) == NUM_CLASSES
    components = (part for text in _texts(config.data.options) for part in re.split(r"[/\\]", text.lower()))
    return any(map(_names_imagenet, components))


def _names_imagenet(component: str) -> bool:
    """Return whether a component of a path is a name of ImageNet-1k and nothing else."""
    words = [word for word in re.split(r"[\W_]+", component) if word]
    known = (word in OTHER_WORDS or SHARD_NUMBER.fullmatch(word) for word in words)
    return bool(words) and words[0] in FIRST_WORDS and all(known)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts within an option, each by itself."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for entry in value.values() for text in _texts(entry))
    elif isinstance(value, (list, tuple)):
        yield from (text for entry in value for text in _texts(entry))


def published_tables() -> list[Table]:
    """Return the published block, to stand beside runs on ImageNet: one table a resolution, the lowest gFID last."""
    return [
        Table(COLUMNS, rows, f"ImageNet {size} x {size}, published", (NOTE,))
        for size, rows in ((256, IMAGENET_256), (512, IMAGENET_512))
    ]
