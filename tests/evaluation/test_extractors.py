"""Extractors: found by name, loaded from files, strict about what is in them."""

from pathlib import Path

import pytest
import timm
import torch
import torch_fidelity
from safetensors.torch import save_file
from torch_fidelity import feature_extractor_inceptionv3

from simflow_plugin.errors import EvaluationError, WeightsError
from simflow_plugin.evaluation.extractors import build_extractor, find_extractor_weights
from simflow_plugin.evaluation.fidelity import extract, fidelity
from tests.evaluation.judges import make_judge

SMALL = "test_vit"
"""timm's smallest vision transformer."""


def images(count=4, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Inception with random weights, as a file such as the published one."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    kind = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_, **__: None)
        torch.save(kind("inception-v3-compat", ["2048"]).state_dict(), path)
    return path


def test_full_pipeline_with_inception_weights_from_a_file(inception_file):
    extractor = build_extractor("inception", inception_file)
    samples, real = extract(extractor, images(4).split(2)), extract(extractor, images(4, seed=1).split(2))
    assert samples.pooled.shape == (4, 2048)
    assert samples.logits.shape == (4, 1008)
    assert samples.spatial.shape == (4, 7 * 17 * 17)
    # The covariances have rank 3: distances in a random projection to a few dimensions are as good a check.
    narrow = [f._replace(pooled=f.pooled[:, :8], spatial=f.spatial[:, :8]) for f in (samples, real)]
    found = fidelity(*narrow, extractor)
    assert set(found) == {"fid", "sfid", "kid", "is", "precision", "recall"}
    assert all("samples" in number.warning for number in found.values())


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("inception", Path("none.pth"), r"none\.pth: no such file \(--weights.*https://github\.com"),
        ("inception", None, r"weights-inception-2015-12-05.*--weights.*https://"),
        ("dinov2-b", None, r"--weights.*https://"),
        ("pretrained", None, "--weights.*simflow pretrain-encoder"),
    ],
)
def test_missing_weights_name_option_and_origin(tmp_path, monkeypatch, name, weights, message):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=message):
        build_extractor(name, weights)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(1), "not the weights of the extractor `inception`"),
        (pytest.raises, "more than tensors"),
        (None, r"other\.pth"),
    ],
    ids=["weights", "code", "text"],
)
def test_file_with_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "other.pth"
    if content is None:
        path.write_text("not weights")
    else:
        torch.save({"a": content}, path)
    with pytest.raises(WeightsError, match=message):
        build_extractor("inception", path)


def pooled_by_timm(extractor, batch):
    network = extractor.network.network
    pixels = (batch / 255 - extractor.network.mean) / extractor.network.std
    return network.forward_head(network.forward_features(pixels), pre_logits=True)


def test_timm_model_gives_what_timm_pools(vit):
    extractor = build_extractor(f"timm:{SMALL}", vit)
    batch = images(2, size=extractor.network.input_size)
    expected = pooled_by_timm(extractor, batch)
    torch.testing.assert_close(extractor(batch).pooled, expected, rtol=1e-4, atol=1e-5)


def test_torch_fidelity_finds_the_registered_extractor(vit):
    extractor = build_extractor(f"timm:{SMALL}", vit)
    found = torch_fidelity.calculate_metrics(
        input1=_Images(images(6)),
        input2=_Images(images(6, seed=1)),
        feature_extractor=f"simflow-timm:{SMALL}",
        feature_extractor_weights_path=str(vit),
        fid=True,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
        cache=False,
    )
    samples, real = extract(extractor, [images(6)]), extract(extractor, [images(6, seed=1)])
    ours = fidelity(samples, real, extractor)[f"fd_{SMALL}"].value
    assert ours == pytest.approx(found["frechet_inception_distance"], rel=1e-3)


class _Images(torch.utils.data.Dataset):
    """Images without labels, as torch-fidelity reads them."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch)

    def __getitem__(self, index):
        return self.batch[index]


def test_pretrained_classifier_gives_features_and_logits(tmp_path):
    features = build_extractor("pretrained", Path(make_judge(tmp_path / "a.safetensors", 3)))(images(2))
    assert features.pooled.shape == (2, 8)
    assert features.logits.shape == (2, 3)


def test_size_in_the_name_decides_what_the_network_sees(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    extractor = build_extractor("timm:test_resnet@64", path)
    assert (extractor.network.input_size, extractor.suffix) == (64, "test_resnet_64")
    batch = images(2, size=64)
    expected = pooled_by_timm(extractor, batch)
    torch.testing.assert_close(extractor(batch).pooled, expected, atol=1e-4, rtol=1e-4)
    assert extractor(images(2, size=32)).pooled.shape == expected.shape


def test_size_in_the_name_resamples_position_embeddings(vit):
    extractor = build_extractor(f"timm:{SMALL}@96", vit)
    assert extractor(images(2)).pooled.shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inceptoin", "Did you mean"),
        ("timm:vit_tinny_patch16_224", "Did you mean"),
        ("timm:test_vit@big", "`big` is not a size in pixels"),
        ("pretrained@96", "sees images at its own size"),
    ],
)
def test_name_or_size_that_cannot_be_is_refused(name, message):
    with pytest.raises(EvaluationError, match=message):
        find_extractor_weights(name, None)
