"""A student in the harness: targets, a frozen teacher, a run that needs nothing else, and bad input."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.contracts import ModelContext
from simflow_plugin.convert.saved import save_converted
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.evaluation.drawing import ImageSampler
from simflow_plugin.flow.guided_forward import guided_trajectory
from simflow_plugin.hub.folder import export_run
from simflow_plugin.models.learned_inverse import LearnedInverse
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.registry import MODELS, Part
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.sources import open_run
from tests.training.tiny_runs import TINY_OPTIONS, assert_runs_equal, make_trainer, tiny_config

CONTEXT = ModelContext((4, 4, 4), 10)
RANDOM = IndexedRandom(0, tuple(range(8)))
STUDENT = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Return the run directory of a flow trained for a few steps, its last layers moved away from zero."""
    path = tmp_path_factory.mktemp("teacher") / "run"
    make_trainer(tiny_config(steps=6), path).train()
    return path


def make_options(teacher, **options):
    """Return the options of a student of a run, its weights copied as `simflow distill` does."""
    values = {"teacher": copied_teacher(teacher), "student": STUDENT, **options}
    return LearnedInverse.Options.model_validate(values).resolved()


def copied_teacher(run):
    file = run.with_name("weights.safetensors")
    loaded = load_run(run)
    save_file(loaded.require_model().state_dict(), file)
    return {"weights": str(file), "model": loaded.config.model_dump(mode="json")["model"]}


def make_model(teacher, context=CONTEXT, **options):
    return LearnedInverse(make_options(teacher, **options), context)


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 4, 4, 4, generator=generator), torch.arange(8)


def test_data_pairs_are_the_teachers_forward_pass(teacher):
    model = make_model(teacher, exact_share=0, class_dropout=0)
    latents, labels = batch()
    pairs = model.pairs(latents, labels, RANDOM)
    noise = model.teacher.flow(model.teacher.tokens(latents), labels).noise
    torch.testing.assert_close(model.teacher.tokens(pairs.noise), noise)
    assert torch.equal(pairs.latents, latents)
    assert torch.equal(pairs.guidance, torch.zeros(8))
    assert len(pairs.states) == 1


def test_data_pairs_are_what_guided_sampling_inverts_with_a_weight_for_each_row(teacher):
    model = make_model(teacher, exact_share=0, class_dropout=0.3, guidance_max=2.0).double()
    latents, labels = batch()
    pairs = model.pairs(latents.double(), labels, RANDOM)
    assert torch.equal(pairs.latents, latents.double())
    assert (pairs.labels < 0).any()
    assert torch.equal(pairs.guidance > 0, pairs.labels >= 0)
    for row, weight in enumerate(pairs.guidance.tolist()):
        noise, label = model.tokens(pairs.noise[[row]]), pairs.labels[[row]]
        exact = model.teacher.flow.inverse(noise, label, guidance=weight)
        torch.testing.assert_close(model.latents(exact), pairs.latents[[row]], rtol=0, atol=1e-8)


@pytest.mark.parametrize("largest", [0.0, 2.0])
def test_exact_pairs_are_guided_by_the_weight_that_the_student_sees(teacher, largest):
    model = make_model(teacher, exact_share=1, guidance_max=largest)
    latents, labels = batch()
    pairs = model.pairs(latents, labels, RANDOM)
    weight = float(pairs.guidance[0])
    assert 0 < weight < 2 if largest else weight == 0
    assert torch.equal(pairs.guidance, pairs.guidance[:1].expand(8))
    expected = model.teacher.flow.inverse(model.teacher.tokens(pairs.noise), labels, guidance=weight)
    torch.testing.assert_close(model.teacher.tokens(pairs.latents), expected)


def test_every_row_of_a_batch_has_the_inner_states_of_its_own_trajectory(teacher):
    model = make_model(teacher, exact_share=0.5, guidance_max=2.0, class_dropout=0).double()
    latents, labels = batch()
    pairs = model.pairs(latents.double(), labels, InFloat64())
    flow, rule = model.teacher.flow, model.guidance_rule
    states = guided_trajectory(flow, model.tokens(pairs.latents), pairs.labels, pairs.guidance, rule)
    torch.testing.assert_close(states[-1], model.tokens(pairs.noise), rtol=0, atol=1e-8)
    (found,) = pairs.states
    torch.testing.assert_close(found, states[1], rtol=0, atol=1e-8)


def test_extrapolated_targets_follow_their_formula_and_are_the_latents_at_guidance_0(teacher):
    options = {"exact_share": 0, "class_dropout": 0.5, "guidance_targets": "extrapolated"}
    model = make_model(teacher, guidance_max=2.0, **options)
    latents, labels = batch()
    pairs = model.pairs(latents, labels, RANDOM)
    free = model.student.invert(pairs.noise, None, torch.zeros(8)).latents
    w = pairs.guidance[:, None, None, None]
    torch.testing.assert_close(pairs.latents, latents + w * (latents - free))
    dropped = pairs.labels < 0
    assert dropped.any()
    assert torch.equal(pairs.guidance[dropped], torch.zeros(int(dropped.sum())))
    assert torch.equal(pairs.latents[dropped], latents[dropped])


def test_a_step_moves_the_student_and_never_the_teacher(teacher):
    model = make_model(teacher, guidance_max=1.0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    latents, labels = batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model.training_losses(latents, labels, None, RANDOM).values()).backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("student.projections") for name in moved)
    assert not any(name.startswith("teacher") for name in moved)
    assert not model.teacher.training


def test_input_noise_changes_the_input_and_not_the_targets(teacher):
    latents, labels = batch()
    options = {"exact_share": 0, "class_dropout": 0, "state_weight": 0}
    clean, noisy = (make_model(teacher, input_noise=std, **options) for std in (0.0, 0.5))
    noisy.load_state_dict(clean.state_dict())
    pairs = noisy.pairs(latents, labels, RANDOM)
    added = pairs.noise + 0.5 * RANDOM.normal("input_noise", latents.shape, latents.device)
    output = clean.student.invert(added, labels, pairs.guidance).latents
    expected = (output - latents).square().mean() / latents.square().mean()
    torch.testing.assert_close(noisy.training_losses(latents, labels, None, RANDOM)["latent"], expected)


def test_a_loss_on_images_compares_what_the_decoder_makes_of_both(teacher):
    """With the decoder z -> 2 z and l1 it is twice the mean absolute error of the latents, times its weight."""
    options = {"exact_share": 0, "class_dropout": 0}
    model = make_model(teacher, image_loss={"name": "l1", "weight": 3.0}, **options)
    latents, labels = batch()
    assert "image" not in model.training_losses(latents, labels, None, RANDOM)  # no decoder was attached
    decoded = []
    model.attach_decoder(lambda z: decoded.append(z) or 2 * z, 4)
    assert not decoded
    terms = model.training_losses(latents, labels, None, RANDOM)
    pairs = model.pairs(latents, labels, RANDOM)
    prediction = model.student.invert(pairs.noise, pairs.labels, pairs.guidance).latents
    torch.testing.assert_close(terms["image"], 3.0 * 2 * (prediction - latents).abs().mean())
    bad = make_model(teacher, image_loss={"name": "l1", "options": {"no_such_option": 1}}, **options)
    with pytest.raises((ConfigError, ValueError), match="no_such_option"):
        bad.attach_decoder(lambda z: z, 4)


def test_starting_from_the_teacher_is_an_option(teacher):
    flow = load_run(teacher).require_model().flow
    config = flow.config
    sizes = {"width": config.width, "num_heads": config.query_heads, "depth": 2, "patch_size": 2}
    model = make_model(teacher, student={**sizes, "mlp_ratio": 4.0}, initial="teacher")
    assert torch.equal(
        model.student.layers[0].attention.qkv.weight, flow.blocks[-1].layers[0].attention.qkv.weight
    )


class InFloat64:
    """The same draws in float64, so that only an error shows."""

    def normal(self, *arguments):
        return RANDOM.normal(*arguments).double()

    def uniform(self, *arguments):
        return RANDOM.uniform(*arguments)


def test_hybrid_samples_are_the_exact_ones(teacher):
    samples = []
    for method in ("cached", {"name": "hybrid", "tolerance": 0.0}):
        model = make_model(teacher, sampling={"method": method}, guidance_max=1.0).double()
        samples.append(model.sample(torch.arange(8), (8, 4, 4, 4), 0.5, InFloat64()))
    torch.testing.assert_close(*samples, atol=1e-8, rtol=1e-8)


def test_without_a_weight_the_teacher_is_asked_once(teacher, monkeypatch):
    """Guided states take two passes of the teacher, which a weight of 0 has no use for."""
    monkeypatch.setattr("simflow_plugin.models.learned_inverse.guided_trajectory", None)
    latents, labels = batch()
    options = {"exact_share": 1, "guidance_max": 2.0, "guidance_targets": "extrapolated"}
    pairs = make_model(teacher, **options).pairs(latents, labels, RANDOM)
    assert len(pairs.states) == 1
    hybrid = make_model(teacher, sampling={"method": "hybrid"}, guidance_max=1.0)
    assert hybrid.sample(labels, (8, 4, 4, 4), 0.0, RANDOM).isfinite().all()
    with pytest.raises(TypeError):
        hybrid.sample(labels, (8, 4, 4, 4), 0.5, RANDOM)


@pytest.mark.parametrize(("denoise", "passes"), [("score", 9), ("none", 8)])
def test_the_exact_sampler_counts_the_pass_that_the_teacher_takes_to_remove_noise(tmp_path, denoise, passes):
    options = {"name": "starflow", **TINY_OPTIONS["starflow"], "denoise": denoise}
    starflow = Part.model_validate(options).build(MODELS, CONTEXT)
    save_file(starflow.state_dict(), tmp_path / "weights.safetensors")
    values = {
        "teacher": {"weights": str(tmp_path / "weights.safetensors"), "model": options},
        "student": STUDENT,
        "sampling": {"method": "cached"},
    }
    model = LearnedInverse(LearnedInverse.Options.model_validate(values).resolved(), CONTEXT)
    assert model.sampler_facts().passes == passes
    assert model.teacher.options.sampling == starflow.options.sampling


def test_density_is_the_teachers(teacher):
    model = make_model(teacher)
    latents, labels = batch()
    expected = load_run(teacher).require_model().log_prob(latents, labels)
    torch.testing.assert_close(model.log_prob(latents, labels), expected)


def test_a_weight_outside_the_range_is_refused_with_the_range(teacher):
    model = make_model(teacher, guidance_max=1.0)
    with pytest.raises(ConfigError, match=r"guidance 1.5 is outside of \[0, 1\]"):
        model.sample(torch.arange(8), (8, 4, 4, 4), 1.5, RANDOM)


def test_a_teacher_that_changed_is_refused(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "run")
    options = make_options(tmp_path / "run")
    weights = load_run(teacher, averaged=False).require_model().state_dict()
    save_file(weights, options.teacher.weights)
    with pytest.raises(WeightsError, match="the teacher has changed"):
        LearnedInverse(options, CONTEXT)
    Path(options.teacher.weights).unlink()
    with pytest.raises(WeightsError, match="no such file"):
        LearnedInverse(options, CONTEXT)


def test_converted_weights_need_no_model_beside_their_configuration(teacher, tmp_path):
    flow = load_run(teacher).require_model().flow
    save_converted(flow, tmp_path / "converted")
    values = {"teacher": {"weights": str(tmp_path / "converted" / "flow.safetensors")}, "student": STUDENT}
    options = LearnedInverse.Options.model_validate(values).resolved()
    latents, labels = batch()
    expected = load_run(teacher).require_model().log_prob(latents, labels)
    torch.testing.assert_close(LearnedInverse(options, CONTEXT).log_prob(latents, labels), expected)
    (tmp_path / "converted" / "flow.json").unlink()
    with pytest.raises(ConfigError, match="Name the model"):
        LearnedInverse.Options.model_validate(values).resolved()


@pytest.mark.parametrize(
    ("context", "options", "message"),
    [
        (ModelContext((4, 4, 4), 10), {"student": {**STUDENT, "patch_size": 1}}, "Use 2"),
        (ModelContext((4, 4, 4), None), {"guidance_max": 1.0}, "no class labels"),
        (ModelContext((8, 4, 4), 10), {}, r"latents \(8, 4, 4\) of 10 classes"),
        (ModelContext((4, 4, 4), 7), {}, r"latents \(4, 4, 4\) of 7 classes"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(teacher, context, options, message):
    with pytest.raises((ConfigError, WeightsError), match=message):
        make_model(teacher, context, **options)


@pytest.mark.parametrize(("model", "message"), [(None, "autoencoder alone"), ("sit", "no flow to invert")])
def test_a_run_without_a_flow_is_no_teacher(tmp_path, model, message):
    make_trainer(tiny_config(model, steps=2), tmp_path / "run").train()
    result = CliRunner().invoke(app, ["distill", str(tmp_path / "run"), "--out", str(tmp_path / "student")])
    assert result.exit_code == 2
    assert message in result.stderr


def test_distilling_again_refuses_a_parent_that_changed(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "run")
    arguments = ["distill", str(tmp_path / "run"), "--out", str(tmp_path / "student"), "--dry-run"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (manifest,) = (tmp_path / "run" / "checkpoints").glob("step_*/manifest.json")
    manifest.write_text(manifest.read_text() + "\n")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "has changed since" in result.stderr


def test_distill_makes_a_run_that_resumes_and_outlives_its_teacher(teacher, tmp_path):
    here, away = tmp_path / "teacher", tmp_path / "away"
    shutil.copytree(teacher, here)
    common = {
        **{"training.checkpoint_every": 2, "training.sample_every": 2, "optimizer.schedule": "constant"},
        **{"model.student.width": 16, "model.student.num_heads": 2, "model.guidance_max": 1},
    }

    def distill(out, steps, *more):
        settings = [f"--set={name}={value}" for name, value in {**common, "training.steps": steps}.items()]
        arguments = ["distill", str(here), "--out", str(out), "--no-report", *settings, *more]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output

    distill(tmp_path / "one", 4)
    distill(tmp_path / "two", 2)
    distill(tmp_path / "two", 4, "--allow-changed", "training.steps")
    assert_runs_equal(tmp_path / "one", tmp_path / "two")
    here.rename(away)
    student = load_run(tmp_path / "two")
    images = ImageSampler.of_run(student, 0.5).draw(range(4), torch.arange(4))
    assert images.shape == (4, 3, 8, 8)
    assert images.isfinite().all()
    check_export(student, tmp_path / "exported", images)
    check_evaluation_against_the_exact_inverse(tmp_path / "two")


def check_export(student, folder, images):
    """An exported student samples the same images where neither the teacher's file nor the run is at hand."""
    folder.mkdir()
    export_run(student, folder)
    assert ".safetensors" not in (folder / "model" / "config.json").read_text().replace(
        "model.safetensors", ""
    )
    exported = open_run(folder, "cpu")
    drawn = ImageSampler.of_run(exported, 0.5).draw(range(4), torch.arange(4))
    assert torch.equal(drawn, images)
    pipeline = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
    (first,) = pipeline([0], guidance=0.5, output_type="pt").images
    torch.testing.assert_close(first, images[0] / 2 + 0.5)
    latents = torch.randn(2, 4, 4, 4)
    labels = torch.arange(2)
    torch.testing.assert_close(
        exported.model.log_prob(latents, labels), student.model.log_prob(latents, labels)
    )


def check_evaluation_against_the_exact_inverse(run):
    arguments = ["evaluate", str(run), "--only", "generation", "--num-samples", "20", "--extractor", "none"]
    result = CliRunner().invoke(app, [*arguments, "--against", "method=cached"])
    assert result.exit_code == 0, result.output
    assert "| | learned | teacher's cached | ratio |" in result.output
    assert "| sequential passes of a batch | 1 | 8 | 0.125 |" in result.output  # 2 blocks of 4 tokens
    refused = CliRunner().invoke(app, [*arguments, "--against", "method=quick"])
    assert refused.exit_code == 2
