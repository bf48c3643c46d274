"""Alignment targets of timm: features of any layer at any input size, and weights that are checked."""

import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from simflow_plugin import registry
from simflow_plugin.alignment import encoder_weights as weights
from simflow_plugin.alignment.timm_encoders import MODEL_BY_PRESET, TimmEncoder
from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import ConfigError, ShapeError, WeightsError

KINDS = ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"]


@pytest.fixture
def no_caches(monkeypatch):
    monkeypatch.setattr(weights, "_cached_file", lambda config: None)


@pytest.fixture
def tiny(random_weights):
    """The smallest network that timm has, trained at 160 pixels: a grid of 10 x 10."""
    return random_weights("test_vit")


def build(image_size=64, model="test_vit", **options) -> TimmEncoder:
    return TimmEncoder(TimmEncoder.Options(model=model, **options), DataContext(image_size, "train"))


def test_features_fill_the_grid_without_prefix_tokens(tiny):
    encoder = build(checkpoint=str(tiny))
    features = encoder.encode(torch.rand(2, 3, 64, 64) * 2 - 1)
    rows, columns = encoder.grid_size(64)
    assert features.shape == (2, rows * columns, encoder.feature_dim)
    assert (rows, columns) == (4, 4)


def test_position_embeddings_at_the_native_size_are_loaded_unchanged(tiny):
    encoder = build(160, checkpoint=str(tiny))
    assert torch.equal(encoder.network.pos_embed, load_file(tiny)["pos_embed"])


def test_normalisation_is_that_of_timm(tiny):
    encoder = build(160, checkpoint=str(tiny))
    config = timm.data.resolve_model_data_config(encoder.network)
    images = torch.rand(1, 3, 160, 160)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(encoder.preprocess(images * 2 - 1), (images - mean) / std, atol=1e-6)


def test_features_are_those_of_timm(tiny):
    encoder = build(160, checkpoint=str(tiny))
    network = timm.create_model("test_vit", num_classes=7, checkpoint_path=str(tiny)).eval()
    images = torch.rand(1, 3, 160, 160) * 2 - 1
    expected = network.forward_features(encoder.preprocess(images))[:, network.num_prefix_tokens :]
    assert torch.allclose(encoder.encode(images), expected, atol=1e-5)


def test_encoder_is_frozen_and_stays_in_evaluation_mode(tiny):
    encoder = build(checkpoint=str(tiny))
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


def test_features_have_no_gradient(tiny):
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    assert not build(checkpoint=str(tiny)).encode(images).requires_grad


def test_input_size_makes_a_finer_grid(tiny):
    encoder = build(checkpoint=str(tiny), input_size=128)
    assert encoder.grid_size(64) == (8, 8)
    assert encoder.encode(torch.zeros(1, 3, 64, 64)).shape[1] == 64


def test_patch_14_sees_256_pixels_as_224(no_caches, monkeypatch):
    seen = {}

    def stop(model, checkpoint):
        raise WeightsError("far enough")

    from simflow_plugin.alignment import timm_encoders

    def remember(*args):
        seen["size"] = choose(*args)
        return seen["size"]

    choose = timm_encoders.choose_input_size
    monkeypatch.setattr(timm_encoders, "choose_input_size", remember)
    monkeypatch.setattr(timm_encoders, "find_weights", stop)
    with pytest.raises(WeightsError):
        build(256, "vit_small_patch14_dinov2.lvd142m")
    assert seen["size"] == 224


def test_image_of_another_size_is_refused(tiny):
    with pytest.raises(ShapeError, match="expected"):
        build(checkpoint=str(tiny)).encode(torch.zeros(1, 3, 32, 32))


def test_image_size_that_the_patch_does_not_divide_is_refused(tiny):
    with pytest.raises(ConfigError, match="40 is not divisible by 16"):
        build(40, checkpoint=str(tiny))


def test_input_size_that_the_patch_does_not_divide_is_refused(tiny):
    with pytest.raises(ConfigError, match="input_size 100 is not divisible by the encoder's patch of 16"):
        build(checkpoint=str(tiny), input_size=100)


def test_checkpoint_with_other_keys_is_named(tmp_path):
    save_file({"encoder.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        WeightsError, match=r"other\.safetensors: .*\d+ missing: .*1 unexpected: encoder\.weight"
    ):
        build(checkpoint=str(tmp_path / "other.safetensors"))


def test_checkpoint_of_another_width_is_named(tmp_path):
    save_file(timm.create_model("test_vit", embed_dim=32).state_dict(), tmp_path / "narrow.safetensors")
    with pytest.raises(WeightsError, match="of another shape: "):
        build(checkpoint=str(tmp_path / "narrow.safetensors"))


def test_checkpoint_with_foreign_keys_is_named(tmp_path):
    state = timm.create_model("test_vit").state_dict() | {"reg_token": torch.zeros(1, 4, 64)}
    save_file(state, tmp_path / "registers.safetensors")
    with pytest.raises(WeightsError, match="1 unexpected: reg_token"):
        build(checkpoint=str(tmp_path / "registers.safetensors"))


def test_checkpoint_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "notes.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"notes\.pth: cannot be read, perhaps torn: KeyError"):
        build(checkpoint=str(tmp_path / "notes.pth"))


class Malicious:
    """Unpickling it would make a file; under weights-only loading it is refused."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_code_in_a_checkpoint_never_runs(tmp_path):
    torch.save({"model": Malicious(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth: holds more than tensors"):
        build(checkpoint=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()


def test_files_are_not_read_by_timm(tiny, monkeypatch):
    monkeypatch.setattr("timm.models.load_state_dict", lambda *args, **kwargs: pytest.fail("may unpickle"))
    assert build(checkpoint=str(tiny)).state_dict()


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_weights_inside_a_training_checkpoint_are_found(tiny, tmp_path, key):
    state = {f"module.{name}": tensor for name, tensor in load_file(tiny).items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "train.pth")
    found, expected = (build(checkpoint=str(path)).state_dict() for path in (tmp_path / "train.pth", tiny))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_missing_checkpoint_names_option_and_address():
    with pytest.raises(WeightsError, match=r"/no/such\.pth.*alignment\.encoder\.checkpoint"):
        build(checkpoint="/no/such.pth")


def test_missing_weights_are_reported_in_seconds(no_caches):
    started = time.monotonic()
    with pytest.raises(
        WeightsError, match=r"checkpoint.*https://huggingface\.co/timm/vit_base_patch14_dinov2"
    ):
        registry.ENCODERS.get("dinov2-b")(TimmEncoder.Options.__base__(), DataContext(256, "train"))
    assert time.monotonic() - started < 20


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match="vit_base_patch16_224"):
        build(model="vit_bas_patch16_224")


@pytest.mark.parametrize("preset", sorted(MODEL_BY_PRESET))
def test_presets_name_published_weights(preset):
    config = timm.get_pretrained_cfg(MODEL_BY_PRESET[preset])
    assert config.hf_hub_id
    assert registry.ENCODERS.get(preset).model == MODEL_BY_PRESET[preset]
