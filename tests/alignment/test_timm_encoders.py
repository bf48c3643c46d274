"""Alignment targets of timm: features of any layer at any input size, and weights that are checked."""

import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from simflow_plugin import registry
from simflow_plugin.alignment import encoder_weights as weights
from simflow_plugin.alignment.head import AlignmentHead
from simflow_plugin.alignment.timm_encoders import MODEL_BY_PRESET, TimmEncoder, plan_encoder
from simflow_plugin.contracts import AlignmentContext, DataContext
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


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("stage", [None, 0, 2])
def test_features_of_every_kind_fill_a_square_grid(random_weights, model, stage):
    encoder = build(model=model, checkpoint=random_weights(model), stage=stage)
    rows, columns = encoder.grid_size(64)
    features = encoder.encode(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert rows == columns
    assert features.shape == (2, rows * columns, encoder.feature_dim)


@pytest.mark.parametrize("model", KINDS[:3])
def test_features_are_those_of_timm_in_raster_order(random_weights, model):
    encoder = build(model=model, checkpoint=random_weights(model), stage=1)
    network = timm.create_model(model, num_classes=7, checkpoint_path=str(random_weights(model))).eval()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    maps = network.forward_intermediates(encoder.preprocess(images), indices=[1], intermediates_only=True)[0]
    tokens = encoder.encode(images)
    columns = maps.shape[-1]
    for row, column in ((0, 1), (1, 0), (columns - 1, columns - 1)):
        torch.testing.assert_close(
            tokens[:, row * columns + column], maps[:, :, row, column], atol=1e-4, rtol=1e-4
        )


def test_frozen_convolutional_encoder_does_not_move_its_statistics(random_weights):
    encoder = build(model=KINDS[0], checkpoint=random_weights(KINDS[0])).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.encode(torch.rand(4, 3, 64, 64) * 2 - 1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_features_are_resampled_to_the_grid_of_the_latents(random_weights):
    encoder = build(model=KINDS[0], checkpoint=random_weights(KINDS[0]), stage=3)
    head = AlignmentHead(8, AlignmentContext(encoder.feature_dim, 1, 16))
    hidden = torch.randn(2, 9, 8, requires_grad=True)
    loss = head(hidden, (3, 3), encoder.encode(torch.rand(2, 3, 64, 64)))
    loss.backward()
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "stage", "message"),
    [
        ("test_efficientnet", 5, "stage 5: `test_efficientnet` has 5 stages, 0 to 4"),
        ("test_vit", 9, "stage 9: `test_vit` has 6 blocks, 0 to 5"),
    ],
)
def test_layer_that_is_not_there_says_how_many_there_are(random_weights, model, stage, message):
    with pytest.raises(ConfigError, match=message):
        build(model=model, checkpoint=random_weights(model), stage=stage)


def test_network_without_intermediate_features_is_refused(monkeypatch):
    monkeypatch.delattr(timm.models.resnet.ResNet, "forward_intermediates")
    with pytest.raises(ConfigError, match="`test_resnet` gives no intermediate features"):
        plan_encoder("test_resnet", 64, None, None)


def test_position_embeddings_at_the_native_size_are_loaded_unchanged(tiny):
    encoder = build(160, checkpoint=tiny)
    assert torch.equal(encoder.network.pos_embed, load_file(tiny)["pos_embed"])


def test_normalisation_is_that_of_timm(tiny):
    encoder = build(160, checkpoint=tiny)
    config = timm.data.resolve_model_data_config(encoder.network)
    images = torch.rand(1, 3, 160, 160)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(encoder.preprocess(images * 2 - 1), (images - mean) / std, atol=1e-6)


def test_features_are_those_of_timm(tiny):
    encoder = build(160, checkpoint=tiny)
    network = timm.create_model("test_vit", num_classes=7, checkpoint_path=tiny).eval()
    images = torch.rand(1, 3, 160, 160) * 2 - 1
    expected = network.forward_features(encoder.preprocess(images))[:, network.num_prefix_tokens :]
    assert torch.allclose(encoder.encode(images), expected, atol=1e-5)


def test_encoder_is_frozen_and_stays_in_evaluation_mode(tiny):
    encoder = build(checkpoint=tiny)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


def test_features_have_no_gradient(tiny):
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    assert not build(checkpoint=tiny).encode(images).requires_grad


@pytest.mark.parametrize(
    ("model", "stage", "grid"), [("test_vit", None, (8, 8)), ("test_efficientnet", 4, (4, 4))]
)
def test_input_size_makes_a_finer_grid(random_weights, model, stage, grid):
    coarse, fine = (
        build(model=model, checkpoint=random_weights(model), stage=stage, input_size=size)
        for size in (None, 128)
    )
    assert coarse.grid_size(64) == (grid[0] // 2, grid[1] // 2)
    assert fine.grid_size(64) == grid
    assert fine.encode(torch.zeros(1, 3, 64, 64)).shape[1] == grid[0] * grid[1]


def test_patch_14_sees_256_pixels_as_224():
    assert plan_encoder("vit_small_patch14_dinov2.lvd142m", 256, None, None).input_size == 224


def test_image_of_another_size_is_refused(tiny):
    with pytest.raises(ShapeError, match="expected"):
        build(checkpoint=tiny).encode(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("image_size", "input_size", "message"),
    [
        (40, None, "40 is not divisible by 16"),
        (64, 100, "input_size 100 is not divisible by the encoder's patch of 16"),
    ],
)
def test_size_that_the_patch_does_not_divide_is_refused(image_size, input_size, message):
    with pytest.raises(ConfigError, match=message):
        plan_encoder("test_vit", image_size, input_size, None)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"encoder.weight": torch.zeros(3)}, r"\d+ missing: .*1 unexpected: encoder\.weight"),
        (timm.create_model("test_vit", embed_dim=32).state_dict(), "of another shape: "),
        (timm.create_model("test_resnet").state_dict(), "missing: "),
        (
            timm.create_model("test_vit").state_dict() | {"reg_token": torch.zeros(4)},
            "1 unexpected: reg_token",
        ),
    ],
    ids=["keys", "width", "network", "foreign key"],
)
def test_checkpoint_of_another_network_is_named(tmp_path, state, message):
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=rf"other\.safetensors: .*{message}"):
        build(checkpoint=str(tmp_path / "other.safetensors"))


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
    assert build(checkpoint=tiny).state_dict()


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
