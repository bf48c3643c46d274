"""Published numbers of papers, shown in a separate block beside the measured ones.

Read in the papers or in what their authors publish beside them; what was not found there stays empty, as `—`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.evaluation.report.html import Cell, Table


@dataclass(frozen=True)
class Scores:
    """Scores of 50,000 samples.

    Args:
        gfid: against the training set.
        inception, precision, recall: None where they are not stated.
    """

    gfid: float
    inception: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Published:
    """One published result.

    Args:
        method: as the paper calls it; what is special about it in brackets.
        arxiv: identifier of the method's paper.
        guided: scores with guidance.
        unguided: scores without, or None.
        epochs: of training the generative model, or None.
        parameters: of the generative model, or empty.
        rfid, psnr: of the autoencoder; psnr in dB.
        reported_in: arXiv identifier of the paper that measured it, where that is not the method's own.
    """

    method: str
    arxiv: str
    guided: Scores
    unguided: Scores | None = None
    epochs: int | None = None
    parameters: str = ""
    rfid: float | None = None
    psnr: float | None = None
    reported_in: str | None = None


SIMFLOW = "2512.04084"
MIMFLOW = "2606.26016"
IMAGENET_256 = (
    Published("FlowBack", "2511.22345", Scores(4.18)),
    Published("SimFlow-L", SIMFLOW, Scores(3.72), Scores(33.53), None, "475M", reported_in=MIMFLOW),
    Published("FARMER", "2510.23588", Scores(3.60), None, None, "1.9B"),
    Published("MIMFlow-L", MIMFLOW, Scores(2.50), Scores(3.64), 90, "482M"),
    Published("STARFlow", "2506.06276", Scores(2.40), None, 320, "1.4B", 2.73, reported_in=SIMFLOW),
    Published("BiFlow (one pass)", "2512.10953", Scores(2.39), None, None, "133M"),
    Published("DiT-XL/2", "2212.09748", Scores(2.27), Scores(9.62), None, "675M"),
    Published(
        "SimFlow",
        SIMFLOW,
        Scores(2.15, 276.8, 0.83, 0.57),
        Scores(13.72, 105.2, 0.67, 0.62),
        160,
        "1.4B",
        1.21,
        23.07,
    ),
    Published("SiT-XL/2", "2401.08740", Scores(2.06), Scores(8.61), None, "675M"),
    Published(
        "SimFlow + REPA-E",
        SIMFLOW,
        Scores(1.91, 284.4, 0.82, 0.60),
        Scores(10.13, 124.7, 0.71, 0.61),
        160,
        "1.4B",
        1.08,
        23.17,
    ),
    Published("SRC-Flow", "2605.18267", Scores(1.65), Scores(8.40), 320, "1.4B"),
    Published("RAE (DiT-DH-XL)", "2510.11690", Scores(1.13), Scores(1.51), None, "839M"),
    Published("REPA-E (SiT-XL/2)", "2504.10483", Scores(1.12), Scores(1.69), None, "675M"),
)
IMAGENET_512 = (
    Published("STARFlow", "2506.06276", Scores(3.00), None, None, "1.4B"),
    Published("SimFlow + REPA-E", SIMFLOW, Scores(2.74), None, None, "1.4B"),
)
NUM_CLASSES = 1000
WORDNET_ID = re.compile(r"n\d{8}")
FIRST_WORDS = frozenset({"imagenet", "imagenet1k", "imagenet2012", "ilsvrc", "ilsvrc12", "ilsvrc2012"})
SIZES = frozenset(str(size) for size in (64, 128, 256, 512)) | {
    f"{size}x{size}" for size in (64, 128, 256, 512)
}
FORMATS = frozenset(
    {"h5", "hdf5", "jpeg", "lmdb", "npy", "parquet", "png", "tar", "wds", "webdataset", "zip"}
)
CONTENTS = frozenset({"img", "image", "images", "latents", "resized", "train", "training", "val"})
OTHER_WORDS = FIRST_WORDS | SIZES | FORMATS | CONTENTS | {"1k", "12", "2012", "cls", "clsloc", "loc"}
"""Words of a name of ImageNet-1k beside a first one: `imagenet-1k`, `ILSVRC2012_img_train.tar`. Any other word makes a
relative of it, with other images: `imagenet-a`, `imagenet_sketch`, `not_imagenet`, `imagenet-22k`."""
SHARD_NUMBER = re.compile(r"\d{4,}")
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
NOTE = (
    "Published by others on ImageNet; nothing in this block was measured here. A dash: not stated, or not found. "
    "IS, P, R: Inception score, precision, recall."
)


def is_imagenet(config: RunConfig, num_classes: int | None, class_names: Sequence[str] | None) -> bool:
    """Return whether a run seems to be trained on ImageNet-1k: 1000 classes, and the names of classes or data.

    Names of classes that are all different and shaped like WordNet's numbers pass, without a look at which they are: of
    1000 other classes of ImageNet-21k it would say so too. Of the data, one whole component of a path or name has to
    be one of ImageNet-1k's usual names.

    Args:
        config: of the run.
        num_classes, class_names: of its data.
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
        Table(
            COLUMNS,
            tuple(_row(result) for result in results),
            f"ImageNet {size} x {size}, published",
            (NOTE,),
        )
        for size, results in ((256, IMAGENET_256), (512, IMAGENET_512))
    ]


def _row(result: Published) -> tuple[str | Cell, ...]:
    measured_by = f"measured in arXiv:{result.reported_in}" if result.reported_in else ""
    return (
        result.method,
        _scores(result.guided),
        _scores(result.unguided),
        _optional(result.rfid, ".2f"),
        _optional(result.psnr, ".2f"),
        _optional(result.epochs, "d"),
        result.parameters or "—",
        Cell(f"arXiv:{result.arxiv}", measured_by),
    )


def _scores(scores: Scores | None) -> Cell:
    """Return gFID, with what else is known in small print."""
    if scores is None:
        return Cell("—")
    others = (("IS", scores.inception, ".1f"), ("P", scores.precision, ".2f"), ("R", scores.recall, ".2f"))
    note = ", ".join(f"{name} {value:{form}}" for name, value, form in others if value is not None)
    return Cell(f"{scores.gfid:.2f}", note)


def _optional(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)
