"""Samples that others made: folders and .npz files of images, statistics of several tools, numbers without a run."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.extractors import build_extractor
from simflow_plugin.evaluation.feature_statistics import FeatureStatistics, read_statistics
from simflow_plugin.evaluation.fidelity import check_frechet, frechet_distance
from simflow_plugin.evaluation.file_evaluation import evaluate_files, open_reference, shared_features
from simflow_plugin.evaluation.image_sets import open_images
from tests.commands import simflow, succeed
from tests.training.two_processes import command_in_two_processes

EXTRACTOR = "timm:test_vit"


def pixels(count, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def moments(dims=4):
    factor = np.random.default_rng(1).standard_normal((dims, dims))
    return np.arange(dims, dtype=np.float64), factor @ factor.T


def folder_of(images, folder):
    (folder / "inner").mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / ("inner" if index % 2 else "") / f"{index:03d}.png")
    return folder


def test_folder_and_npz_hold_the_same_images(tmp_path):
    images = pixels(5)
    np.savez(tmp_path / "a.npz", arr_0=images, labels=np.zeros(5))
    in_file = torch.cat(list(open_images(tmp_path / "a.npz", "--samples").batches(2)))
    folder = open_images(folder_of(images, tmp_path / "png"), "--samples")
    in_folder = torch.cat(list(folder.batches(2)))
    assert folder.count == 5
    assert torch.equal(in_file, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert sorted(map(torch.Tensor.tolist, in_folder)) == sorted(map(torch.Tensor.tolist, in_file))


@pytest.mark.parametrize("kind", ["npz", "deflated", "folder"])
def test_any_range_of_images_is_read(tmp_path, kind):
    save = {"npz": np.savez, "deflated": np.savez_compressed}.get(kind)
    if save is None:
        images = open_images(folder_of(pixels(9), tmp_path / "a"), "DATA")
    else:
        save(tmp_path / "a.npz", arr_0=pixels(9))
        images = open_images(tmp_path / "a.npz", "DATA")
    all_of_them = torch.cat(list(images.batches(9)))
    for numbers in (range(3), range(2, 7), range(8, 9)):
        assert torch.equal(
            torch.cat(list(images.read(numbers, 2))), all_of_them[numbers.start : numbers.stop]
        )


def test_images_of_several_sizes_come_in_batches_of_one_size(tmp_path):
    folder_of(pixels(2, 8), tmp_path / "a")
    folder_of(pixels(3, 12), tmp_path / "b")
    shapes = [tuple(batch.shape) for batch in open_images(tmp_path, "--samples").batches(8)]
    assert sum(shape[0] for shape in shapes) == 5
    assert {shape[2:] for shape in shapes} == {(8, 8), (12, 12)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(2)}, r"--samples .*a\.npz: expected images under the key arr_0, found images"),
        ({"arr_0": pixels(2).astype(np.float32)}, "arr_0 is float32 .* expected uint8"),
        ({"arr_0": pixels(2).transpose(0, 3, 1, 2)}, r"shape \(2, 3, 16, 16\); expected"),
        ({"arr_0": np.array([{}], dtype=object)}, "arr_0 is object"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(EvaluationError, match=message):
        open_images(tmp_path / "a.npz", "--samples")


def test_torn_file_of_images_is_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=pixels(4))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EvaluationError, match=r"a\.npz: cannot be read, perhaps torn"):
        open_images(path, "--samples")
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as entry:
        np.lib.format.write_array_header_2_0(
            entry, {"descr": "|u1", "fortran_order": False, "shape": (9, 4, 4, 3)}
        )
        entry.write(bytes(4 * 4 * 3 * 2))
    with pytest.raises(EvaluationError, match="ends before image 9 of 9"):
        list(open_images(path, "--samples").batches(16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tool", ["pytorch-fid", "adm", "torch-fidelity"])
def test_statistics_of_other_tools_are_read(tmp_path, tool, dtype):
    mean, covariance = (array.astype(dtype) for array in moments())
    if tool == "torch-fidelity":
        path = tmp_path / "reference-stat.pt"
        torch.save({"mu": mean, "sigma": covariance}, path)
    else:
        path = tmp_path / "reference.npz"
        spatial = {"mu_s": mean, "sigma_s": covariance} if tool == "adm" else {}
        np.savez(path, mu=mean, sigma=covariance, **spatial)
    found = read_statistics(path)
    assert found.extractor is None
    assert (found.spatial is not None) == (tool == "adm")
    assert found.pooled.mean.dtype == found.pooled.covariance.dtype == np.float64
    np.testing.assert_array_equal(found.pooled.covariance, covariance.astype(np.float64))


def test_statistics_that_are_none_are_refused(tmp_path):
    mean, covariance = moments()
    path = tmp_path / "a.npz"
    for broken, message in (
        ({"mu": mean}, "has mu, but no sigma"),
        ({"mu": mean, "sigma": covariance[:3]}, r"shape \(4,\) and sigma \(3, 4\)"),
        ({"mu": mean, "sigma": covariance + np.triu(np.ones((4, 4)))}, "not symmetric"),
        ({"mu": mean * np.nan, "sigma": covariance}, "not finite"),
        ({"mu": np.array([{}]), "sigma": covariance}, "cannot be read"),
    ):
        np.savez(path, **broken)
        with pytest.raises(EvaluationError, match=message):
            read_statistics(path)
    torch.save({"mu": open_images}, tmp_path / "a.pt")
    with pytest.raises(EvaluationError, match="Python objects are not loaded"):
        read_statistics(tmp_path / "a.pt")


def test_two_processes_share_the_images_of_statistics(tmp_path, vit):
    real = tmp_path / "real.npz"
    np.savez(real, arr_0=pixels(1100, 8, seed=1))  # two parts, one each
    words = (real, "--extractor", EXTRACTOR, "--weights", vit)
    cache = tmp_path / "cache"
    main, other = command_in_two_processes(
        ["simflow_plugin.cli.statistics", *words, "--out", tmp_path / "two.npz"], {"SIMFLOW_DATA": str(cache)}
    )
    assert "1,100 images" in main
    assert "1,100 images" not in other
    assert not [file for file in cache.rglob("*") if file.is_file()]  # nothing is left once it is written
    succeed("statistics", *words, "--out", tmp_path / "one.npz")
    one, two = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    for name in ("mu", "sigma"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-9)


def test_statistics_go_on_with_the_parts_that_are_there(tmp_path, vit):
    np.savez(tmp_path / "real.npz", arr_0=pixels(1100, 8, seed=1))
    images, extractor = open_images(tmp_path / "real.npz", "DATA"), build_extractor(EXTRACTOR, vit)
    shared_features(images, extractor, 64).make_missing(0, 2)
    read = []
    watched = replace(images, read=lambda numbers, size: read.append(numbers) or images.read(numbers, size))
    assert len(shared_features(watched, extractor, 64).read().pooled) == 1100
    assert read == [range(1000, 1100)]


def test_written_statistics_give_the_distance_to_the_images_themselves(tmp_path, vit):
    samples, real = tmp_path / "samples.npz", folder_of(pixels(24, seed=1), tmp_path / "real")
    np.savez(samples, arr_0=pixels(20))
    common = ("--extractor", EXTRACTOR, "--weights", vit)
    succeed("statistics", real, "--out", tmp_path / "real.npz", *common)
    numbers = []
    for reference in (real, tmp_path / "real.npz"):
        out = tmp_path / f"{reference.stem}{reference.suffix}.json"
        succeed("evaluate", "--samples", samples, "--reference", reference, *common, "--json", out)
        numbers.append(json.loads(out.read_text())["metrics"])
    to_images, to_statistics = numbers
    assert set(to_images) == {f"{name}_test_vit" for name in ("fd", "kd", "precision", "recall")}
    assert set(to_statistics) == {"fd_test_vit"}
    # The same float64 computation on the same features: only the batches of the extractor could differ.
    assert to_statistics["fd_test_vit"]["value"] == pytest.approx(to_images["fd_test_vit"]["value"], rel=1e-6)
    assert "singular" in to_statistics["fd_test_vit"]["warning"]
    assert "20 images of samples.npz" in to_statistics["fd_test_vit"]["on"]


def test_reference_of_images_and_statistics_uses_both(tmp_path, vit):
    """ADM's reference batches hold 10,000 images, and statistics of all of the training set."""
    extractor = build_extractor(EXTRACTOR, vit)
    np.savez(tmp_path / "samples.npz", arr_0=pixels(12))
    samples = open_images(tmp_path / "samples.npz", "--samples")
    dims = extractor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).pooled.shape[1]
    facts = {"extractor": EXTRACTOR, "weights": extractor.digest}
    np.savez(
        tmp_path / "both.npz", arr_0=pixels(9, seed=2), mu=np.full(dims, 100.0), sigma=np.eye(dims), **facts
    )
    found, notes = evaluate_files(samples, open_reference(tmp_path / "both.npz"), extractor, 8)
    assert set(found) == {f"{name}_test_vit" for name in ("fd", "kd", "precision", "recall")}
    assert found["fd_test_vit"].value > 9e3 * dims  # the statistics' mean, far from that of any image
    assert any("its 9 images" in note for note in notes)


def test_statistics_of_other_features_are_refused(tmp_path, vit):
    extractor = build_extractor(EXTRACTOR, vit)
    mean, covariance = moments()
    np.savez(tmp_path / "unsaid.npz", mu=mean, sigma=covariance)
    with pytest.raises(EvaluationError, match=r"unsaid\.npz: .*`inception` \(the file names no extractor"):
        read_statistics(tmp_path / "unsaid.npz").check_made_by(extractor, tmp_path / "unsaid.npz")
    other = FeatureStatistics((mean, covariance), None, EXTRACTOR, "another")
    with pytest.raises(EvaluationError, match="made with weights of digest another"):
        other.check_made_by(extractor, tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a run directory, or images with --samples"),
        (("run", "--samples", "a.npz", "--reference", "b"), "found both"),
        (("--samples", "a.npz"), "--samples: needs --reference"),
        (
            ("--samples", "a.npz", "--reference", "b", "--num-samples", "5", "--npz", "c.npz"),
            "--npz, --num-samples: has no effect with --samples",
        ),
        (("run", "--json", "a.json"), "--json: has no effect with a run"),
        (("--samples", "none", "--reference", "b"), "--samples none: no such folder or file"),
    ],
)
def test_options_without_effect_are_refused(arguments, message):
    status, output = simflow("evaluate", *arguments)
    assert status != 0
    assert message in output


def test_frechet_distance_of_this_machine_is_right():
    found, expected, is_right = check_frechet(dims=64)
    assert is_right, (found, expected)


def test_a_wrong_square_root_is_noticed():
    def off_by_a_percent(*moments):
        return 1.01 * frechet_distance(*moments)

    def diverges(*moments):
        raise np.linalg.LinAlgError("did not converge")

    assert not check_frechet(off_by_a_percent, dims=16)[2]
    assert not check_frechet(lambda *moments: float("nan"), dims=16)[2]
    assert not check_frechet(diverges, dims=16)[2]
