"""Perceptual losses: real weights or none, constants that no checkpoint holds, and features as published."""

import time

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from simflow_plugin.alignment.classifier import ClassifierCard, make_network, save_classifier
from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import ConfigError, ShapeError, WeightsError
from simflow_plugin.losses.lpips_loss import LPIPSLoss
from simflow_plugin.losses.timm_loss import TimmLoss

VIT = {
    "backbone": "vit_tiny_patch16_224",
    "arguments": {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 12},
}


def images(size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def vit_checkpoint(tmp_path_factory):
    """The weights of a tiny classifier; random, since only the arithmetic is tested."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    network = timm.create_model(VIT["backbone"], num_classes=10, **VIT["arguments"])
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def alexnet_checkpoint(tmp_path_factory):
    """AlexNet's `features` under torchvision's names; random, since only the arithmetic is tested."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.safetensors"
    with torch.device("meta"):
        shapes = torchvision.models.alexnet().features.state_dict()
    save_file({f"features.{name}": torch.randn(value.shape) * 0.05 for name, value in shapes.items()}, path)
    return path


def timm_loss(checkpoint, image_size: int = 16, **options) -> TimmLoss:
    options = {**VIT, "checkpoint": str(checkpoint), **options}
    return TimmLoss(TimmLoss.Options.model_validate(options), DataContext(image_size, "train"))


def alexnet_loss(checkpoint, context: DataContext | None = None) -> LPIPSLoss:
    return LPIPSLoss(LPIPSLoss.Options(net="alex", backbone_path=str(checkpoint)), context)


def test_timm_loss_is_the_mean_squared_distance_of_unit_features(vit_checkpoint):
    loss = timm_loss(vit_checkpoint, layers=[0, 1], mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    network = timm.create_model(VIT["backbone"], num_classes=10, **VIT["arguments"]).eval()
    network.load_state_dict(load_file(vit_checkpoint))
    a, b = images(16), images(16, seed=1)
    distances = []
    for x, y in zip(
        network.forward_intermediates(a, indices=[0, 1], intermediates_only=True),
        network.forward_intermediates(b, indices=[0, 1], intermediates_only=True),
        strict=True,
    ):
        # |x/|x| - y/|y||^2 = 2 - 2 cos
        distances.append((2 - 2 * torch.cosine_similarity(x, y, dim=1)).mean())
    torch.testing.assert_close(loss(a, b), torch.stack(distances).mean(), atol=1e-6, rtol=1e-4)


def test_timm_loss_runs_no_layer_beyond_the_last_that_it_compares(vit_checkpoint):
    loss = timm_loss(vit_checkpoint, layers=[0])
    blocks, ran = loss.network.blocks, []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    loss(images(16), images(16, seed=1))
    assert set(ran) == {0}


@pytest.mark.parametrize("name", ["timm", "lpips"])
def test_frozen_backbone_is_no_part_of_a_checkpoint_and_stays_in_evaluation_mode(
    name, vit_checkpoint, alexnet_checkpoint
):
    loss = timm_loss(vit_checkpoint) if name == "timm" else alexnet_loss(alexnet_checkpoint)
    assert (list(loss.parameters()), dict(loss.state_dict())) == ([], {})
    assert not any(module.training for module in loss.train().modules())


def test_timm_loss_sends_gradients_to_the_reconstruction(vit_checkpoint):
    reconstruction = images(16).requires_grad_()
    timm_loss(vit_checkpoint)(reconstruction, images(16, seed=1)).backward()
    assert reconstruction.grad.abs().sum() > 0


def test_timm_loss_resizes_where_asked(vit_checkpoint):
    assert timm_loss(vit_checkpoint, image_size=32, resize=16)(images(32), images(32)).item() == 0


def test_timm_loss_takes_a_classifier_trained_here_as_it_is(tmp_path):
    torch.manual_seed(0)
    architecture = {"model": VIT["backbone"], **VIT["arguments"], "num_heads": 3, "num_classes": 2}
    card = ClassifierCard(architecture, (0.5,) * 3, (0.5,) * 3, ("a", "b"), "toy", 0.5, 2, 1)
    save_classifier(tmp_path / "own.safetensors", make_network(architecture), card)
    options = TimmLoss.Options(checkpoint=str(tmp_path / "own.safetensors"))
    loss = TimmLoss(options, DataContext(32, "train"))
    assert loss(images(32), images(32)).item() == 0
    assert loss(images(32), images(32, seed=1)).item() > 0


def test_timm_loss_refuses_arguments_without_a_backbone(tmp_path):
    options = TimmLoss.Options(checkpoint=str(tmp_path / "own.safetensors"), arguments={"depth": 2})
    with pytest.raises(ConfigError, match="no effect without `backbone`"):
        TimmLoss(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [7]}, "layers"),
        ({"backbone": "vit_tinny_patch16_224"}, "Did you mean `vit_tiny_patch16_224`"),
        ({"arguments": {"patchsize": 4}}, "patchsize"),
    ],
)
def test_timm_loss_refuses_options_that_do_not_suit(vit_checkpoint, options, message):
    with pytest.raises(ConfigError, match=message):
        timm_loss(vit_checkpoint, **options)


def test_timm_loss_refuses_an_image_size_at_once(vit_checkpoint):
    with pytest.raises(ConfigError, match="images of 18 pixels"):
        timm_loss(vit_checkpoint, image_size=18)


def test_timm_loss_without_its_file_names_the_address(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pt: no such file.*https://huggingface\.co/timm/"):
        timm_loss(tmp_path / "none.pt")


def test_timm_loss_refuses_weights_of_another_architecture(vit_checkpoint):
    arguments = {**VIT["arguments"], "depth": 3}
    with pytest.raises(WeightsError, match=r"vit\.safetensors.*missing: blocks\.2"):
        timm_loss(vit_checkpoint, arguments=arguments)


@pytest.mark.filterwarnings("ignore::UserWarning")  # lpips calls torchvision by deprecated names
def test_lpips_equals_that_of_its_package(alexnet_checkpoint):
    import lpips

    loss = alexnet_loss(alexnet_checkpoint)
    # lpips' own modules, with our constants put back as weights.
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    reference.net.load_state_dict(dict(loss.network.net.named_buffers()))
    a, b = images(32), images(32, seed=1)
    torch.testing.assert_close(loss(a, b), reference(a, b).mean())


def test_lpips_without_its_backbone_fails_at_once_with_the_way_out(tmp_path):
    start = time.monotonic()
    with pytest.raises(
        WeightsError, match=r"vgg\.pth.*pytorch\.org/models/vgg16-397923af\.pth.*`backbone_path`"
    ):
        LPIPSLoss(LPIPSLoss.Options(backbone_path=str(tmp_path / "vgg.pth")))
    assert time.monotonic() - start < 1


def test_lpips_looks_into_the_cache_of_torch_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=str(tmp_path / "checkpoints" / "vgg16-397923af.pth")):
        LPIPSLoss(LPIPSLoss.Options())


def test_lpips_refuses_weights_of_another_network(vit_checkpoint):
    with pytest.raises(WeightsError, match=r"vit\.safetensors.*missing"):
        alexnet_loss(vit_checkpoint)


def test_lpips_refuses_small_images_before_loading(alexnet_checkpoint):
    with pytest.raises(ShapeError, match="16 pixels are too small"):
        alexnet_loss(alexnet_checkpoint, DataContext(16, "train"))
