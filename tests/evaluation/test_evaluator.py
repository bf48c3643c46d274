"""Evaluation of a run: held-out data, EMA weights, the same samples whatever the processes, honest refusals."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError, WeightsError
from simflow_plugin.evaluation.drawing import ImageSampler, to_uint8
from simflow_plugin.evaluation.evaluator import RunEvaluator
from simflow_plugin.evaluation.extractors import build_extractor
from simflow_plugin.evaluation.report.metric_names import metrics_table
from simflow_plugin.evaluation.result import read_evaluation
from simflow_plugin.registry import Part
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.parts import build_dataset
from tests.data.makers import png
from tests.evaluation.runs import copy_run, evaluate, make_run, request


@pytest.fixture
def run(flow_run, tmp_path):
    return copy_run(flow_run, tmp_path / "run")


@pytest.fixture
def without_density(diffusion_run, tmp_path):
    return copy_run(diffusion_run, tmp_path / "run")


def test_everything_is_measured_on_held_out_images_with_averaged_weights(run):
    found = evaluate(run)
    assert set(found.metrics) == {
        "class_agreement",
        "diversity_ratio",
        "psnr",
        "ssim",
        "latent_bits_per_dim",
        "image_bits_per_dim",
        "sampling_seconds",
    }
    assert found.settings["weights"] == "EMA"
    assert "test split" in found.metrics["psnr"].on
    assert any("LPIPS: not measured" in note for note in found.notes)


def test_shards_hold_the_samples_of_the_sampler(run):
    loaded = load_run(run, "cpu")
    evaluator = RunEvaluator(loaded, request(parts=("generation",), guidance=0.0, seed=3))
    evaluator.make_samples()
    images, labels = (np.concatenate(part) for part in zip(*evaluator.shards.read(), strict=True))
    drawn = ImageSampler.of_run(loaded, 0.0, 3).batches(torch.from_numpy(labels), batch_size=5)
    expected = to_uint8(torch.cat(list(drawn)))
    # Batches of another size may round otherwise.
    assert np.abs(images.astype(int) - expected.numpy()).max() <= 1


def test_number_of_processes_does_not_change_the_samples(run):
    loaded, asked = load_run(run, "cpu"), {"parts": ("generation",), "num_samples": 300}
    evaluator = RunEvaluator(loaded, request(**asked))
    for rank in (1, 0):
        evaluator.make_samples(rank, 2)
    together = [images for images, _ in evaluator.shards.read()]
    alone = RunEvaluator(loaded, request(**asked, batch_size=7))
    assert alone.shards.folder == evaluator.shards.folder
    for shard in alone.shards.folder.glob("shard_*"):
        shard.unlink()
    alone.make_samples()
    for ours, theirs in zip((images for images, _ in alone.shards.read()), together, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1  # a batch of another size may round otherwise


def test_other_settings_have_folders_of_their_own(run):
    folders = {
        RunEvaluator(load_run(run, "cpu", averaged), request(**changes)).shards.folder
        for averaged, changes in (
            (True, {}),
            (False, {}),
            (True, {"seed": 1}),
            (True, {"guidance": 0.0, "sampling": ("method=naive",)}),
        )
    }
    assert len(folders) == 4


def test_later_parts_join_the_same_result_with_its_notes(run):
    first = evaluate(run, parts=("likelihood",))
    found = evaluate(run, parts=("reconstruction",))
    assert {"image_bits_per_dim", "psnr"} <= set(found.metrics)
    assert set(first.notes) <= set(found.notes)


def test_feature_metrics_are_named_by_their_extractor_and_warn_of_few_samples(
    run, vit, monkeypatch, tmp_path
):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "cache"))
    found = evaluate(run, parts=("generation", "reconstruction"), extractor="timm:test_vit", weights=vit)
    assert {"fd_test_vit", "kd_test_vit", "rfd_test_vit", "fd_to_reconstructions_test_vit"} <= set(
        found.metrics
    )
    assert "do not quote" in found.metrics["fd_test_vit"].warning
    assert "24 samples against" in found.metrics["fd_test_vit"].on
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 1


def test_distance_to_reconstructions_leaves_the_error_of_the_autoencoder_out(run, vit, monkeypatch, tmp_path):
    """Samples that are the reconstructions themselves are at distance 0 of them, though not of real images."""
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "cache"))
    loaded = load_run(run, "cpu")
    parts = ("generation", "reconstruction")
    evaluator = RunEvaluator(
        loaded, request(parts=parts, extractor="timm:test_vit", weights=vit, num_samples=20, num_held_out=20)
    )
    (batch,) = evaluation_batches(evaluator.test, 20, sample_rows(len(evaluator.test), 20))
    with torch.no_grad():
        decoded = loaded.autoencoder.decode(loaded.autoencoder.encode(batch.images).mode()).clamp(-1, 1)
    drawn = (to_uint8(decoded).numpy(), np.arange(20) % 10)
    monkeypatch.setattr(evaluator, "_draw", lambda indices: tuple(part[list(indices)] for part in drawn))
    evaluator.make_samples()
    found = evaluator.measure().metrics
    assert found["fd_to_reconstructions_test_vit"].value == pytest.approx(
        0, abs=1e-3 * found["rfd_test_vit"].value
    )
    assert found["fd_test_vit"].value > 0


def test_cached_features_of_real_images_are_of_these_images(vit, monkeypatch, tmp_path):
    """Two projects with a folder of one name, or one whose images were replaced: never each other's FID."""
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "cache"))
    features = []
    for name, grey in (("a", 0), ("b", 255)):
        for index in range(16):
            path = tmp_path / name / "data" / str(index % 2) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(grey))
        monkeypatch.chdir(tmp_path / name)
        data = {"name": "image_folder", "root": "data", "test_share": 0.5}
        run = make_run(tmp_path / name / "run", data=data, evaluation={"judge": "none", "num_samples": 0})
        evaluator = RunEvaluator(load_run(run, "cpu"), request(extractor="timm:test_vit", weights=vit))
        features.append(evaluator._real_features(evaluator.extractor).read().pooled)
    assert not torch.allclose(features[0], features[1])


def test_judge_that_is_missing_is_refused_before_sampling(run):
    loaded = load_run(run, "cpu")
    judge = Part.model_validate({"name": "encoder", "checkpoint": str(run / "no.safetensors")})
    with pytest.raises(WeightsError, match=r"no\.safetensors: no such file"):
        RunEvaluator(loaded, request(judge=judge))
    with pytest.raises(EvaluationError, match="--num-samples 12: .*two samples of each of 10 classes: 20"):
        RunEvaluator(loaded, request(num_samples=12))


def test_images_that_were_added_since_training_are_told(tmp_path, caplog):
    """The held-out share is drawn anew, so that most of it was trained on."""

    def add_images(numbers):
        for index in numbers:
            path = tmp_path / "data" / str(index % 2) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(4 * index))

    add_images(range(40))
    data = {"name": "image_folder", "root": str(tmp_path / "data"), "test_share": 0.2}
    run = make_run(tmp_path / "run", data=data, evaluation={"judge": "none", "num_samples": 0})
    only = {"parts": ("reconstruction",), "num_held_out": 4}
    assert not any("trained on" in note for note in evaluate(run, **only).notes)
    add_images(range(40, 50))
    assert any("40 images now and had 32" in note for note in evaluate(run, **only).notes)
    make_run(tmp_path / "run", data=data, evaluation={"judge": "none", "num_samples": 0})
    assert "may hold images that it was trained on" in caplog.text


def test_training_split_as_reference_is_said(run, vit, monkeypatch):
    few = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    num_real = len(build_dataset(load_run(run).config, "train"))
    features = build_extractor("timm:test_vit", vit)(few)
    repeated = [part if part is None else part.repeat(-(-num_real // 8), 1)[:num_real] for part in features]
    real = SimpleNamespace(make_missing=lambda *_: None, read=lambda: type(features)(*repeated))
    monkeypatch.setattr(RunEvaluator, "_real_features", lambda self, extractor: real)
    changes = {"parts": ("generation",), "reference": "train", "extractor": "timm:test_vit", "weights": vit}
    assert "training split" in evaluate(run, **changes).metrics["fd_test_vit"].warning


def test_scores_of_every_image_are_written_with_the_error_of_their_draws(run):
    found = evaluate(run, parts=("likelihood",))
    with (found.folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    num_rows = len(build_dataset(load_run(run, "cpu").config, "test"))
    assert [int(row["index"]) for row in rows] == sample_rows(num_rows, 12)
    mean = np.mean([float(row["image_bits_per_dim"]) for row in rows])
    number = found.metrics["image_bits_per_dim"]
    assert mean == pytest.approx(number.value, rel=1e-9)
    errors = np.array([float(row["image_bits_error"]) for row in rows])
    assert number.draws_error == pytest.approx(np.sqrt(np.sum(errors**2)) / len(errors), rel=1e-9)
    assert 0 < number.draws_error < number.high - number.low
    assert any("control variate" in note for note in found.notes)
    page = metrics_table(found.metrics).cells()
    assert any("Monte-Carlo error" in cell.note for row in page for cell in row)


def test_a_data_set_is_not_told_apart_from_itself_and_one_draw_leaves_its_error_unknown(run):
    found = evaluate(run, parts=("likelihood",), ood="digits", posterior_samples=1)
    assert found.metrics["image_bits_per_dim"].draws_error is None
    assert found.metrics["auroc_image"].value == pytest.approx(0.5)
    assert (found.folder / "scores_ood.csv").exists()


def test_likelihood_of_a_model_without_density_is_left_out_and_tells_no_outliers(without_density):
    found = evaluate(without_density, parts=("likelihood",))
    assert found.metrics == {}
    assert any("no exact density" in note for note in found.notes)
    with pytest.raises(EvaluationError, match="--ood digits: .*exact density"):
        evaluate(without_density, parts=("likelihood",), ood="digits")


def test_autoencoder_alone_is_measured_by_its_reconstructions(tmp_path):
    found = evaluate(make_run(tmp_path / "run", None))
    assert set(found.metrics) == {"psnr", "ssim"}


def test_sampler_option_changes_the_sampler(without_density):
    loaded = load_run(without_density, "cpu")
    evaluator = RunEvaluator(loaded, request(parts=("generation",), sampling=("num_steps=1",)))
    assert evaluator.loaded.model.options.sampling.num_steps == 1
    assert evaluator.evaluation.settings["sampling"]["num_steps"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 2.0}, "guidance 2"),
        ({"num_samples": 1}, "--num-samples 1"),
        ({"parts": ("generatoin",)}, "Did you mean `generation`"),
        ({"sampling": ("steps=3",)}, "--sampling steps=3"),
        ({"sampling": ("fast",)}, "expected key=value"),
        ({"extractor": "inceptionn"}, "Did you mean `inception`"),
        ({"parts": ("reconstruction",), "reference": "train"}, "--reference train: .*part `generation`"),
        ({"parts": ("generation",), "lpips_backbone": "x"}, "--lpips-backbone x: .*part `reconstruction`"),
        (
            {"parts": ("reconstruction",), "posterior_samples": 3},
            "--posterior-samples 3: .*part .*`likelihood`",
        ),
        ({"weights": "x.pt"}, "--weights x.pt: has no effect with --extractor none"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(flow_run, changes, message):
    loaded = load_run(flow_run, "cpu")
    loaded.model.supports_guidance = False
    with pytest.raises((ConfigError, EvaluationError), match=message):
        RunEvaluator(loaded, request(**changes))


def test_run_without_checkpoint_is_refused(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_run(run, "cpu")


def test_damaged_result_is_refused(run):
    folder = evaluate(run, parts=("reconstruction",)).folder
    document = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({"settings": document["settings"]}))
    with pytest.raises(EvaluationError, match=r"result\.json: missing or damaged"):
        read_evaluation(folder)
