"""Answers of the page: the numbers of `simflow_plugin.load`, and where an image lies among held-out ones."""

import json

import numpy as np
import pytest
import torch

import simflow_plugin
from simflow_plugin.app.answers import ALL_CLASSES, Answers, weights_digest
from simflow_plugin.app.likelihood_reference import FILE, LikelihoodReference
from simflow_plugin.app.space import APP, add_space
from simflow_plugin.errors import DataError
from simflow_plugin.evaluation.drawing import to_pil, to_uint8
from simflow_plugin.evaluation.monte_carlo import ControlVariate
from simflow_plugin.hub.folder import export_run
from simflow_plugin.runs.autoguidance import GuideChoice
from tests.app.images import held_out_image
from tests.evaluation.runs import make_run
from tests.training.tiny_runs import make_trainer, tiny_config, tiny_values


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return Answers(simflow_plugin.load(make_run(tmp_path_factory.mktemp("app") / "flow")))


@pytest.fixture(scope="module")
def image(answers):
    return held_out_image(answers.run, 0)


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def tiles(picture, count, side):
    """Return the first `count` tiles of a one-row picture, at the model's own size."""
    pixels = np.asarray(picture.convert("RGB"))
    factor = pixels.shape[0] // side
    step = side * factor + 2 * factor * side // 48  # the gap is of 2 where a tile is of 48
    return np.stack(
        [pixels[: side * factor : factor, i * step : i * step + side * factor : factor] for i in range(count)]
    )


def test_grid_holds_the_samples_of_that_class_and_seed(answers):
    drawn = to_uint8(answers.run.sample(["3"] * 4, guidance=0.5, seed=7)).numpy()
    assert np.array_equal(tiles(answers.samples("3", 0.5, 7, 4), 4, 8), drawn)
    in_turn = to_uint8(answers.run.sample(4, guidance=0.0, seed=7)).numpy()
    assert np.array_equal(tiles(answers.samples(ALL_CLASSES, 0.0, 7, 4), 4, 8), in_turn)


def test_likelihood_is_that_of_the_run(answers, image):
    reference, problem = answers.reference
    assert problem == ""
    wanted = float(answers.run.bits_per_dim(as_tensor(image))[0])
    (found,) = reference.bits_of(answers.run.loaded, as_tensor(image).float() / 127.5 - 1)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert f"{wanted:.3f} bits per dimension" in answers.examine(image).likelihood


def test_a_model_without_label_dropout_is_guided_by_a_weaker_one_which_is_loaded_once(tmp_path, monkeypatch):
    values = tiny_values("sit", steps=4, checkpoint_every=2, keep_checkpoints=2)
    values["sampling"] |= {"guidance": 2.0, "autoguidance": "@2"}
    values["model"]["label_dropout"] = 0.0
    make_trainer(tiny_config(values=values), tmp_path / "sit").train()
    run = simflow_plugin.load(tmp_path / "sit")
    answers = Answers(run)
    assert answers.can_guide
    assert not run.model.supports_guidance
    loads = []
    monkeypatch.setattr(
        GuideChoice,
        "load",
        lambda self, *options, load=GuideChoice.load: loads.append(self) or load(self, *options),
    )
    few, many = (np.asarray(answers.samples(None, weight, 0, 2)) for weight in (1.0, 50.0))
    assert not np.array_equal(few, many)
    assert [choice.step for choice in loads] == [2]


def test_classes_are_those_of_the_likelihood_and_sum_to_one(answers, image):
    classes = answers.examine(image).classes
    best = int(answers.run.log_prob_by_class(as_tensor(image)).argmax())
    assert max(classes, key=classes.get) == str(best)
    assert sum(classes.values()) == pytest.approx(1)


def test_share_of_less_likely_images_counts_ties_half():
    reference = LikelihoodReference(
        scale=0.1, control=ControlVariate(1, 0), bits_per_dim=(1, 2, 2, 4), held_out="", weights=""
    )
    shares = [reference.share_less_likely(bits) for bits in (0.5, 1.0, 2.0, 3.0, 5.0)]
    assert shares == [1.0, 0.875, 0.5, 0.25, 0.0]


def test_scores_are_sorted_on_reading(tmp_path):
    saved = {"scale": 0.1, "control": [1, 0], "bits_per_dim": [3, 1, 2], "held_out": "", "weights": "a"}
    (tmp_path / FILE).write_text(json.dumps(saved))
    assert LikelihoodReference.load(tmp_path, "a").bits_per_dim == (1, 2, 3)


def test_title_names_run_step_and_weights(answers):
    assert f"**{answers.run.loaded.config.name}**" in answers.title
    assert f"step {answers.run.loaded.checkpoint.step}" in answers.title
    assert answers.digest[:12] in answers.title


def test_digest_tells_weights_apart(answers):
    last = simflow_plugin.load(answers.run.loaded.directory.path, averaged=False)
    assert weights_digest(last.loaded) != answers.digest
    assert weights_digest(simflow_plugin.load(answers.run.loaded.directory.path).loaded) == answers.digest


@pytest.mark.parametrize("num", [0, 65])
def test_number_of_samples_is_bounded(answers, num):
    with pytest.raises(DataError, match="expected 1 to 64"):
        answers.samples(None, 0.0, 0, num)


def test_interpolation_begins_at_the_first_image(answers, image):
    flipped = image.rotate(180)
    way = to_uint8(answers.run.interpolate(image, flipped, 9)[0]).numpy()
    assert np.array_equal(tiles(answers.interpolation(image, flipped), 9, 8), way)


def test_a_model_without_density_still_decodes(tmp_path):
    of_sit = Answers(simflow_plugin.load(make_run(tmp_path / "sit", "sit")))
    picture = to_pil(of_sit.run.sample(1))[0]
    found = of_sit.examine(picture)
    assert found.classes is None
    assert "no exact density" in found.likelihood


def test_scores_of_an_aligned_run_are_those_of_the_weights_that_its_space_has(tmp_path):
    """The export leaves the alignment head out, so that run and export have digests of their own."""
    run = make_run(tmp_path / "aligned", alignment={"encoder": "toy", "projector_dim": 8})
    loaded, folder = simflow_plugin.load(run, averaged=False).loaded, tmp_path / "space"
    folder.mkdir()
    export_run(loaded, folder)
    add_space(loaded, folder)
    there = Answers(simflow_plugin.load(folder, averaged=False))
    assert there.digest != weights_digest(loaded)
    assert LikelihoodReference.load(folder, there.digest).bits_per_dim


@pytest.fixture
def space(answers, tmp_path):
    folder = tmp_path / "space"
    folder.mkdir()
    export_run(answers.run.loaded, folder)
    add_space(answers.run.loaded, folder)
    return folder


def test_a_space_answers_without_the_data_of_the_run(space, answers, image, monkeypatch):
    def no_data(*_):
        raise DataError("no data here")

    monkeypatch.setattr("simflow_plugin.app.likelihood_reference.build_dataset", no_data)
    there = Answers(simflow_plugin.load(space))
    assert there.digest == answers.digest
    assert there.examine(image).likelihood == answers.examine(image).likelihood
    (space / FILE).unlink()
    without = Answers(simflow_plugin.load(space)).examine(image)
    assert "bits per dimension of the latent" in without.likelihood
    assert "no data here" in without.likelihood


def test_a_space_has_its_metadata_first_and_a_script_that_compiles(space):
    assert (space / "README.md").read_text().startswith("---\nsdk: gradio\napp_file: app.py\n")
    compile((space / APP).read_text(), APP, "exec")
    assert "simflow-plugin[app]" in (space / "requirements.txt").read_text()


def test_scores_of_other_weights_are_refused(space):
    saved = json.loads((space / FILE).read_text())
    (space / FILE).write_text(json.dumps({**saved, "weights": "0" * 64}))
    reference, problem = Answers(simflow_plugin.load(space)).reference
    assert reference is None
    assert "Export the run again" in problem
