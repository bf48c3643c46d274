"""A classifier that judges at chance: what a file of `simflow pretrain-encoder` looks like."""

import torch

from simflow_plugin.alignment.classifier import ClassifierCard, make_network, save_classifier


def make_judge(path, num_classes):
    """Write a classifier of random weights for images of 8 x 8; return its path as text."""
    architecture = {"model": "vit_tiny_patch16_224", "embed_dim": 8, "depth": 1, "num_heads": 2}
    architecture |= {"img_size": 8, "patch_size": 4, "num_classes": num_classes}
    names = tuple(map(str, range(num_classes)))
    torch.manual_seed(0)
    network = make_network(architecture)
    card = ClassifierCard(architecture, (0.5,) * 3, (0.5,) * 3, names, "digits", 0.1, 10, 1)
    save_classifier(path, network, card)
    return str(path)
