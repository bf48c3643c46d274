"""EfficientNet-Lite0 from its Python package: the real weights, where the package is installed."""

import pytest
import timm
import torch
from sklearn.datasets import load_sample_images

from simflow_plugin.alignment.backbone_package import MODEL, find_packaged_weights, rename_packaged
from simflow_plugin.alignment.encoder_weights import find_weights, load_weights
from simflow_plugin.alignment.timm_encoders import TimmEncoder
from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import WeightsError
from simflow_plugin.evaluation.extractors import build_extractor
from simflow_plugin.losses.timm_loss import TimmLoss

installed = pytest.mark.skipif(
    find_packaged_weights(MODEL) is None, reason="extra `backbone` is not installed"
)
PALACE, DAISY = 698, 985
"""ImageNet's classes of scikit-learn's two photographs, a temple and a flower."""


def photographs() -> torch.Tensor:
    """Return both photographs, (2, 3, 224, 224), [-1, 1]."""
    squares = []
    for pixels in load_sample_images().images:
        image = torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1
        margin = (image.shape[2] - image.shape[1]) // 2
        square = image[None, :, :, margin : margin + image.shape[1]]
        squares.append(torch.nn.functional.interpolate(square, (224, 224), mode="bicubic", antialias=True))
    return torch.cat(squares)


@installed
def test_packaged_weights_recognise_photographs():
    network = timm.create_model(MODEL, pretrained=False).eval()
    load_weights(network, find_weights(MODEL, None))
    with torch.no_grad():
        assert network(photographs()).argmax(1).tolist() == [PALACE, DAISY]


@installed
def test_packaged_weights_serve_encoder_extractor_and_loss():
    """One file for all three: the classifier is left out where there is none."""
    images = photographs()
    encoder = TimmEncoder(TimmEncoder.Options(model=MODEL, stage=2, input_size=64), DataContext(224, "train"))
    assert encoder.encode(images).shape == (2, 64, 40)
    extractor = build_extractor(f"timm:{MODEL}@64", None)
    assert extractor(((images.clamp(-1, 1) + 1) * 127.5).byte()).pooled.shape == (2, 1280)
    loss = TimmLoss(TimmLoss.Options(backbone=MODEL, layers=[0, 1]), DataContext(32, "train"))
    small = torch.nn.functional.interpolate(images, (32, 32))
    assert loss(small, small) == 0
    assert loss(small, small.flip(0)) > 0.1


def test_other_models_have_no_packaged_weights():
    assert find_packaged_weights("resnet18.a1_in1k") is None


def test_renaming_keeps_the_order_and_leaves_the_classifier_out():
    network = timm.create_model("test_efficientnet", num_classes=0)
    names = list(network.state_dict())
    numbers = {f"_{i}": torch.full((1,), float(i)) for i in range(len(names))}
    renamed = rename_packaged({**numbers, "_fc.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)}, network)
    assert [renamed[name].item() for name in names] == list(range(len(names)))


def test_renaming_for_another_network_is_refused():
    with pytest.raises(WeightsError, match="3 tensors of tf_efficientnet_lite0, but EfficientNet"):
        rename_packaged({f"_{i}": torch.zeros(1) for i in range(3)}, timm.create_model("test_efficientnet"))
