"""A classifier trained here on labelled images: alignment target and judge, no download.

A small vision transformer from scratch (`token_classifier`), or a published backbone that was fine-tuned
(`backbone_classifier`). It is one safetensors file whose metadata hold how to build the network, how to normalise, the
names of the classes and the accuracy on held-out images.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin import registry
from simflow_plugin.alignment.backbone_classifier import BackboneClassifier
from simflow_plugin.alignment.encoder import FrozenEncoder
from simflow_plugin.alignment.options import ClassifierOptions
from simflow_plugin.alignment.token_classifier import TokenClassifier
from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import RunDirectoryError, WeightsError
from simflow_plugin.files import replacing
from simflow_plugin.weights import load_strictly, read_metadata, read_tensors

FORMAT = "simflow-classifier-1"


@dataclass(frozen=True)
class ClassifierCard:
    """Description in a classifier's file.

    Args:
        architecture: arguments of `make_network`; `kind` is `tokens` (also if it is missing) or `backbone`.
        mean, std: normalisation, per channel, for pixels in [0, 1].
        class_names: in the order of the logits.
        data: the data set it was trained on.
        test_accuracy: share of held-out images given the right class, [0, 1].
        num_test: how many those were.
        steps: optimizer steps.
    """

    architecture: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]
    data: str
    test_accuracy: float
    num_test: int
    steps: int


Classifier = TokenClassifier | BackboneClassifier


def make_network(architecture: dict[str, Any]) -> Classifier:
    """Build the classifier that a card describes, with random weights."""
    is_backbone = architecture.get("kind") == "backbone"
    return BackboneClassifier(architecture) if is_backbone else TokenClassifier(architecture)


def save_classifier(path: Path, network: nn.Module, card: ClassifierCard) -> None:
    """Write weights and card to one safetensors file, in one piece."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"format": FORMAT, "card": json.dumps(asdict(card))}
    with replacing(path, RunDirectoryError) as part:
        save_file(tensors, part, metadata)


def load_classifier(path: Path) -> tuple[Classifier, ClassifierCard]:
    """Read a file that `save_classifier` wrote.

    Raises:
        WeightsError: if it is missing, damaged, or something else.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file. Make it with `simflow pretrain-encoder --data fashion-mnist --out "
            f"{path}`."
        )
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: not made by `simflow pretrain-encoder` (format {metadata.get('format')!r}, expected "
            f"{FORMAT!r}). For published weights use an encoder such as `dinov2-b` or `timm`."
        )
    try:
        card = ClassifierCard(**json.loads(metadata["card"]))
        network = make_network(card.architecture)
    # A RuntimeError also where the description is nested too deep.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{path}: its description is no card of a classifier: {error!r:.200}") from error
    load_strictly(network, read_tensors(path), str(path), "Make the file again.")
    return network, card


@registry.ENCODERS.register("pretrained")
class ClassifierEncoder(FrozenEncoder):
    """A classifier that `simflow pretrain-encoder` made: features, and class logits for an evaluation.

    Args:
        options: the file.
        context: image size; images of another size than it was trained on are resized to that.
    Attributes:
        card: the description in the file.
    Raises:
        WeightsError: if the file is missing, damaged, or something else.
    """

    Options = ClassifierOptions

    def __init__(self, options: ClassifierOptions, context: DataContext) -> None:
        network, card = load_classifier(Path(options.checkpoint).expanduser())
        size = card.architecture["img_size"]
        super().__init__(network, context.image_size, size, network.layer, card.mean, card.std)
        self.card = card

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return class logits (B, num_classes), float32, of images (B, 3, H, W) in [-1, 1]."""
        return self.network(self.preprocess(images)).float()
