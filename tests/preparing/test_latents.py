"""Latents on disk are those of the run, in layouts that other trainers read."""

import json
from pathlib import Path
from unittest.mock import Mock

import h5py
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import simflow_plugin
from simflow_plugin.cli.app import app
from simflow_plugin.contracts import NO_LABEL, Example
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.preparing import encoded_images
from simflow_plugin.preparing.encoded_images import Encoding, encode_dataset
from simflow_plugin.preparing.latent_shards import _batches
from simflow_plugin.preparing.repa_e_layout import check_labels
from simflow_plugin.preparing.shards import Shard, ShardFacts
from simflow_plugin.runs.parts import build_dataset
from tests.evaluation.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return simflow_plugin.load(make_run(tmp_path_factory.mktemp("runs") / "flow"))


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("latents") / "out"
    command = f"latents {run.loaded.directory.path} --out {out} --split test --layout repa-e"
    answer = CliRunner().invoke(app, [*command.split(), "--images-per-shard", "150", "--seed", "3"])
    assert answer.exit_code == 0, answer.output
    return out


def shards(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([file[name] for file in files]) for name in files[0]}


def test_moments_and_samples_are_those_of_the_run(run, written):
    test = build_dataset(run.loaded.config, "test")
    images = torch.stack([test[index].image for index in range(len(test))])
    found = shards(written)
    assert found["indices"].tolist() == list(range(len(test)))
    assert found["labels"].tolist() == [test[index].label for index in range(len(test))]
    for ending, shown in (("", images), ("_flip", images.flip(-1))):
        mean, log_variance = found[f"moments{ending}"].chunk(2, dim=1)
        torch.testing.assert_close(mean, run.encode(shown), atol=1e-5, rtol=1e-4)
        posterior = run.autoencoder.encode(shown[:1].float() / 127.5 - 1)
        torch.testing.assert_close(log_variance[:1], 2 * posterior.std.log().expand_as(mean[:1]))
        std = (log_variance / 2).exp()
        noise = (found[f"latents{ending}"] - mean) / std
        assert abs(float(noise.mean())) < 0.05
        assert float(noise.std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(found["latents"], run.encode(images, seed=3), atol=1e-5, rtol=1e-4)


def test_statistics_are_those_of_all_latents(written):
    found = shards(written)["latents"].double()
    stored = torch.load(written / "latents_stats.pt", weights_only=True)
    assert stored["mean"].shape == stored["std"].shape == (1, found.shape[1], 1, 1)
    for name in ("mean", "std"):
        expected = getattr(found, name)((0, 2, 3), keepdim=True)
        torch.testing.assert_close(stored[name].double(), expected, atol=1e-5, rtol=1e-4)
    assert json.loads((written / "dataset.json").read_text())["mean"] == stored["mean"].flatten().tolist()


def test_every_file_in_the_folder_that_the_trainer_globs_has_its_keys(written):
    for path in written.glob("*.safetensors"):
        file = load_file(path)
        assert {"latents", "latents_flip", "labels"} <= file.keys()
        assert file["latents"].shape == file["latents_flip"].shape
        assert len(file["labels"]) == len(file["latents"])


def test_the_hdf5_layout_holds_mean_and_std_by_image(written):
    found = shards(written)
    names = json.loads((written / "latents_h5.json").read_text())
    with h5py.File(written / "latents.h5") as file:
        labels = dict(json.loads(file["dataset.json"][()])["labels"])
        keys = sorted(name for name in names if name.endswith(".npy"))
        assert [labels[key] for key in keys] == found["labels"].tolist()
        for row, key in enumerate(keys[:5]):
            mean, std = torch.from_numpy(file[key][()]).chunk(2)
            expected_mean, expected_log_variance = found["moments"][row].chunk(2)
            torch.testing.assert_close(mean, expected_mean)
            torch.testing.assert_close(std.square().log(), expected_log_variance, atol=1e-5, rtol=1e-4)
    scale = torch.load(written / "latents-latents-stats.pt", weights_only=True)
    assert scale["latents_scale"].shape == scale["latents_bias"].shape


def test_interrupted_encoding_goes_on_with_the_same_bytes(run, written, tmp_path, monkeypatch):
    write, calls = encoded_images.write_latents, []

    def killed(*of):
        calls.append(of[-1].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*of)

    monkeypatch.setattr(encoded_images, "write_latents", killed)
    encoding = Encoding("test", 150, 3, "lightningdit")
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(run.loaded, encoding, tmp_path / "out")
    with pytest.raises(RunDirectoryError, match="begun with seed 3, and this is 4"):
        encode_dataset(run.loaded, Encoding("test", 150, 4), tmp_path / "out")
    card = encode_dataset(run.loaded, encoding, tmp_path / "out")
    assert len(calls) == len(set(calls)) + 1
    whole = {
        file["name"]: file["sha256"] for file in json.loads((written / "dataset.json").read_text())["files"]
    }
    assert all(whole[file["name"]] == file["sha256"] for file in card["files"] if "shard" in file["name"])
    assert card["files"][0]["sha256"] in (tmp_path / "out" / "README.md").read_text()


def test_weights_changed_under_the_same_name_are_refused(run, tmp_path, monkeypatch):
    encoding, folder = Encoding("test", 150), tmp_path / "out"
    monkeypatch.setattr(encoded_images, "write_latents", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(run.loaded, encoding, folder)
    for changed, message in (("checkpoint_digest", "checkpoint"), ("content_fingerprint", "other images")):
        with monkeypatch.context() as patch:
            patch.setattr(encoded_images, changed, lambda *of: "another")
            with pytest.raises(RunDirectoryError, match=f"begun with {message}"):
                encode_dataset(run.loaded, encoding, folder)
    with pytest.raises(KeyboardInterrupt):  # the layout decides no number
        encode_dataset(run.loaded, Encoding("test", 150, layout="repa-e"), folder)


def test_layout_that_needs_labels_refuses_images_without_before_the_first_is_encoded(
    run, tmp_path, monkeypatch
):
    dataset = build_dataset(run.loaded.config, "test")
    dataset.labels = torch.full_like(dataset.labels, NO_LABEL)
    monkeypatch.setattr(encoded_images, "build_dataset", lambda *of: dataset)
    with pytest.raises(DataError, match="these images have none"):
        encode_dataset(run.loaded, Encoding("test", 150, layout="repa-e"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    dataset.labels, dataset.num_classes = torch.zeros_like(dataset.labels), None
    with pytest.raises(DataError, match="these images have none"):
        check_labels(dataset)


def test_too_many_damaged_images_end_the_work_with_their_shard(run, tmp_path, monkeypatch):
    dataset, calls = build_dataset(run.loaded.config, "test"), []

    def damaged(loaded, dataset, folder, seed, shard):
        calls.append(shard.name)
        return ShardFacts(shard.name, 0, "", 0, ["a.png: no image"] * len(dataset))

    monkeypatch.setattr(encoded_images, "write_latents", damaged)
    with pytest.raises(DataError, match=r"images are corrupt.*such as a\.png"):
        encode_dataset(run.loaded, Encoding("test", len(dataset) // 3), tmp_path / "out")
    assert len(calls) == 1


def test_damaged_images_are_left_out_of_batches_that_several_threads_read(run):
    class Damaged:
        num_classes = class_names = None

        def __len__(self):
            return 23

        def __getitem__(self, index):
            if index in (5, 9):
                raise CorruptImage(f"{index}.png: no image")
            return Example(torch.full((3, 2, 2), index, dtype=torch.uint8), index % 3)

    damaged = []
    batches = list(_batches(Damaged(), Shard("a", 3, 21), 7, damaged))
    expected = [index for index in range(3, 21) if index not in (5, 9)]
    assert torch.cat([batch.indices for batch in batches]).tolist() == expected
    assert torch.cat([batch.images for batch in batches])[:, 0, 0, 0].tolist() == expected
    assert torch.cat([batch.labels for batch in batches]).tolist() == [index % 3 for index in expected]
    assert damaged == ["5.png: no image", "9.png: no image"]
