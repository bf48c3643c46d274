"""Train a small vision transformer to classify a labelled data set, or fine-tune a published backbone to do so.

Cross-entropy, AdamW, warm-up and cosine decay, random shifts of a pixel, mirrored images if asked for. What comes out
is an alignment target that knows what the images show, and a judge of class agreement; a small transformer is no
substitute for DINOv2 on photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simflow_plugin.alignment.backbone_classifier import BackboneClassifier
from simflow_plugin.alignment.classifier import ClassifierCard, make_network
from simflow_plugin.alignment.encoder import Normalization
from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import Batch, evaluation_batches, make_loader
from simflow_plugin.data.order import GlobalBatches
from simflow_plugin.errors import ConfigError, DataError
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.randomness import BatchRandom, derive_seed

MAX_SHIFT = 1
WARMUP_SHARE = 0.1
WEIGHT_DECAY = 0.05
LOG_EVERY = 50
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class PretrainingOptions:
    """Training settings of the classifier.

    Args:
        data: name of the data set, for the card.
        image_size: in pixels; divisible by `patch_size`.
        model: a vision transformer of timm, whose sizes the next ones override where given.
        patch_size: in pixels.
        width, depth, num_heads: of the transformer; None for the model's own.
        steps: optimizer steps.
        batch_size: images per step.
        learning_rate: the peak.
        seed: of initial weights, order, shifts and mirroring.
        fine_tuned: name in timm of the backbone to start from, in place of a transformer from scratch.
        weights: file of its published weights; None for the local caches and packages.
        input_size: pixels at which the backbone sees images; None for `image_size`.
        horizontal_flip: mirror every other image.
    """

    data: str
    image_size: int
    model: str = "vit_tiny_patch16_224"
    patch_size: int = 4
    width: int | None = 96
    depth: int | None = 3
    num_heads: int | None = 3
    steps: int = 1200
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    fine_tuned: str | None = None
    weights: str | None = None
    input_size: int | None = None
    horizontal_flip: bool = False

    def architecture(self, num_classes: int) -> dict[str, int | str]:
        """Return the arguments of `make_network`.

        Raises:
            ConfigError: if the patch does not divide the image, or the heads the width.
        """
        if self.fine_tuned is not None:
            size = self.input_size or self.image_size
            network: dict[str, int | str] = {"kind": "backbone", "model": self.fine_tuned}
            return {**network, "img_size": size, "num_classes": num_classes}
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image size {self.image_size} is not divisible by the patch size {self.patch_size}."
            )
        if self.width is not None and self.num_heads is not None and self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not divisible by {self.num_heads} heads.")
        sizes = {"embed_dim": self.width, "depth": self.depth, "num_heads": self.num_heads}
        known: dict[str, int | str] = {name: size for name, size in sizes.items() if size is not None}
        return known | {
            "model": self.model,
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "num_classes": num_classes,
        }


def pretrain_classifier(
    options: PretrainingOptions,
    train: ImageDataset,
    test: ImageDataset,
    report: Callable[[int, float], None] | None = None,
) -> tuple[nn.Module, ClassifierCard]:
    """Train a classifier and measure it on the test split.

    Args:
        options: network and training.
        train, test: labelled.
        report: called with (step, loss) now and then.
    Returns:
        the network, in evaluation mode on the CPU, and its card.
    Raises:
        DataError: if the data set has no labels.
        ConfigError: if sizes do not divide.
    """
    if train.num_classes is None or train.class_names is None:
        raise DataError(
            f"{options.data}: no labels to learn from. An encoder is pretrained on a labelled data set."
        )
    architecture = options.architecture(train.num_classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "initialisation"))
        network = make_network(architecture)
    mean, std = MEAN, STD
    if isinstance(network, BackboneClassifier):
        network.load_published(options.weights)
        mean, std = network.mean, network.std
    normalize = Normalization(int(architecture["img_size"]), mean, std).to(device)
    network.to(device)
    batches = make_loader(
        train,
        GlobalBatches(options.batch_size),
        options.seed,
        range(options.steps),
        horizontal_flip=options.horizontal_flip,
    )
    _train(network, iter(batches), options, normalize, report)
    accuracy, num_test = measure_accuracy(network.eval(), test, options.batch_size, normalize)
    card = ClassifierCard(
        architecture=architecture,
        mean=mean,
        std=std,
        class_names=tuple(train.class_names),
        data=options.data,
        test_accuracy=accuracy,
        num_test=num_test,
        steps=options.steps,
    )
    return network.cpu(), card


def _train(
    network: nn.Module,
    batches: Iterator[Batch],
    options: PretrainingOptions,
    normalize: Normalization,
    report: Callable[[int, float], None] | None,
) -> None:
    network.train()
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=WEIGHT_DECAY)
    for batch in batches:
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * learning_rate_ratio(batch.step, options.steps)
        random = BatchRandom(options.seed, batch.step, batch.offset, options.batch_size)
        images = shift_images(batch.images, random.uniform("shift", (len(batch.images), 2))).to(device)
        loss = F.cross_entropy(network(normalize(images)), batch.labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if report is not None and ((batch.step + 1) % LOG_EVERY == 0 or batch.step + 1 == options.steps):
            report(batch.step + 1, float(loss.detach()))


def learning_rate_ratio(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step`: linear warm-up, then half a cosine to 0."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def shift_images(images: Tensor, uniform: Tensor) -> Tensor:
    """Shift each image by up to a pixel each way, filling with its edge.

    Args:
        images: (B, 3, H, W).
        uniform: (B, 2), [0, 1), how far down and right.
    """
    height, width = images.shape[-2:]
    start = (uniform * (2 * MAX_SHIFT + 1)).long() - MAX_SHIFT
    rows = (torch.arange(height) + start[:, :1]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width) + start[:, 1:]).clamp(0, width - 1)  # (B, W)
    batch = torch.arange(len(images))[:, None, None]
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def measure_accuracy(
    network: nn.Module, dataset: ImageDataset, batch_size: int, normalize: Normalization
) -> tuple[float, int]:
    """Return the share of images given the right class, [0, 1], and how many there were."""
    correct = total = 0
    device = next(network.parameters()).device
    with count_progress("held-out images", len(dataset)) as advance:
        for batch in evaluation_batches(dataset, batch_size):
            predicted = network(normalize(batch.images.to(device))).argmax(dim=-1).cpu()
            correct += int((predicted == batch.labels).sum())
            total += len(batch.labels)
            advance(len(batch.labels))
    return correct / max(1, total), total
