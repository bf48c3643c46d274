"""A study runs every part once, at one budget, and goes on where it stopped; with fake stages."""

import json

import pytest

from simflow_plugin.errors import ConfigError, RunDirectoryError, WeightsError
from simflow_plugin.runs.checkpoints import save_checkpoint
from simflow_plugin.studies import runner as runner_module
from simflow_plugin.studies import stages
from simflow_plugin.studies.definitions import CIFAR_HEADLINE, FIXED_VARIANCE, STUDIES, find_study
from simflow_plugin.studies.runner import StudyRunner
from simflow_plugin.studies.stages import StudySettings, study_config

ENSURE_ENCODER = stages.ensure_encoder


class FakeStages:
    """Stages that write what the real ones leave behind, and note what was asked of them."""

    def __init__(self, monkeypatch):
        self.suffix, self.stop_before = "pretrained", None
        self.forget()
        for name in ("measure_variant", "measure_real", "autoencoder_cost"):
            monkeypatch.setattr(stages, name, getattr(self, name))
        monkeypatch.setattr(stages, "ensure_encoder", lambda path, config, can_make: None)
        for name in ("train", "export_autoencoder"):
            monkeypatch.setattr(runner_module, name, getattr(self, name))
        monkeypatch.setattr(runner_module, "load_run", lambda path: path)
        monkeypatch.setattr(runner_module, "std_before_scaling", lambda path, std: [std / 2] * 8)

    def forget(self):
        self.trained, self.measured, self.exported, self.configs = [], [], [], {}

    def train(self, config, run, allow_changed, report):
        if run.path.name == self.stop_before:
            raise KeyboardInterrupt
        self.trained.append(run.path.name)
        self.configs[run.path.name] = config
        run.prepare(config, [])
        run.metrics_file.write_text(json.dumps({"step": config.training.steps, "seconds": 2.0}) + "\n")
        save_checkpoint(run.checkpoints, config.training.steps, {}, {})

    def export_autoencoder(self, run, path):
        self.exported.append(run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def measure_variant(self, run, settings, guidance):
        self.measured.append(run.path.name)
        cost = {"model_parameters": 1, "autoencoder_parameters": 1, "training_flops": 1, "sampling_flops": 1}
        numbers = {f"fd_{self.suffix}": float(len(self.measured)), "class_agreement": 0.5}
        return {
            "metrics": {f"{w:g}": numbers for w in guidance},
            "intervals": {f"{w:g}": {} for w in guidance},
            "cost": {f"{w:g}": {**cost, "steps": 1, "train_seconds": 1.0} for w in guidance},
        }

    def autoencoder_cost(self, run, config):
        return {"training_flops": 1, "steps": config.training.steps, "train_seconds": 2.0}

    def measure_real(self, config, settings):
        return {f"fd_{self.suffix}": 0.1, "class_agreement": 0.9}


@pytest.fixture
def fake(monkeypatch):
    return FakeStages(monkeypatch)


def make_runner(tmp_path, study=FIXED_VARIANCE, **settings):
    return StudyRunner(study, StudySettings(tmp_path / "out", tmp_path / "encoder", **settings))


def test_autoencoders_come_first_then_every_variant_in_order(fake, tmp_path):
    make_runner(tmp_path).run()
    names = [v.name for v in FIXED_VARIANCE.variants]
    assert fake.trained == [*FIXED_VARIANCE.autoencoders, *names]
    assert fake.exported == list(FIXED_VARIANCE.autoencoders)
    assert fake.measured == names


def test_finished_study_is_not_run_again(fake, tmp_path):
    first = make_runner(tmp_path).run()
    fake.forget()
    assert make_runner(tmp_path).run() == first
    assert fake.trained == fake.measured == fake.exported == []


def test_size_of_a_batch_is_written_into_variants_that_were_measured_without_it(fake, tmp_path):
    first = make_runner(tmp_path).run()
    earlier = json.loads(json.dumps(first))
    for variant in earlier["variants"].values():
        del variant["batch_size"]
    (tmp_path / "out" / "study.json").write_text(json.dumps(earlier))
    fake.forget()
    assert make_runner(tmp_path).run() == first
    assert fake.measured == []


def test_interrupted_study_continues_with_what_is_left(fake, tmp_path):
    fake.stop_before = "frozen_encoder_noise"
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path).run()
    fake.forget()
    fake.stop_before = None
    document = make_runner(tmp_path).run()
    assert fake.trained == ["frozen_encoder_noise", "end_to_end_noise", "end_to_end_fixed"]
    assert set(document["variants"]) == {v.name for v in FIXED_VARIANCE.variants}


def test_budget_scales_steps_and_warmup_of_all_alike(fake, tmp_path):
    whole = study_config("studies/fixed_variance/base", StudySettings(tmp_path, tmp_path), [])
    make_runner(tmp_path, budget=0.25).run()
    steps = {c.training.steps for c in fake.configs.values()}
    warmup = {c.optimizer.warmup_steps for c in fake.configs.values()}
    assert steps == {whole.training.steps // 4}
    assert warmup == {whole.optimizer.warmup_steps // 4}


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_all_runs_differ_in_parts_only(study, fake, tmp_path):
    fake.suffix = study.suffix
    make_runner(tmp_path, study).run()
    fake.configs.pop("autoencoder_long", None)  # its length is the condition that it stands for
    shared = [
        config.model_dump(
            include={"seed", "image_size", "data", "optimizer", "training", "sampling", "evaluation"}
        )
        for config in fake.configs.values()
    ]
    assert all(config == shared[0] for config in shared)


def test_noise_is_relative_to_the_latents_of_the_exported_autoencoder(fake, tmp_path):
    make_runner(tmp_path).run()
    options = fake.configs["frozen_encoder_noise"].autoencoder.options
    assert options["posterior"]["std"] == [0.25] * 8
    assert options["pretrained"] == str(tmp_path / "out/autoencoders/autoencoder_learnable.safetensors")


def test_variants_start_from_autoencoders_of_their_study():
    for study in STUDIES.values():
        assert {v.autoencoder for v in study.variants} <= {None, *study.autoencoders}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [({"budget": 0.5}, {"budget": 1.0}, r"budget.*--out"), ({"seed": 0}, {"seed": 1}, "'seed': 1")],
)
def test_directory_of_a_study_with_other_settings_is_refused(fake, tmp_path, first, second, message):
    make_runner(tmp_path, **first).run()
    with pytest.raises(RunDirectoryError, match=message):
        make_runner(tmp_path, **second)


def test_budget_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="--budget 0"):
        StudySettings(tmp_path, tmp_path, budget=0)


def test_unknown_study_lists_choices():
    with pytest.raises(ConfigError, match="Did you mean `headline`"):
        find_study("headlines")


def test_seed_and_shared_values_reach_every_run(fake, tmp_path):
    runner = make_runner(tmp_path, seed=3, overrides=("training.batch_size=8",))
    runner.run()
    assert {(config.seed, config.training.batch_size) for config in fake.configs.values()} == {(3, 8)}
    assert runner.document["settings"]["seed"] == 3


def test_usual_settings_are_those_of_earlier_versions(tmp_path):
    known = {"budget", "num_samples", "num_held_out", "encoder"}
    assert set(StudySettings(tmp_path, tmp_path).what_decides()) == known


def test_study_that_cannot_make_its_judge_asks_for_it(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "ensure_encoder", ENSURE_ENCODER)
    with pytest.raises(WeightsError, match=r"encoder: no such file"):
        make_runner(tmp_path, CIFAR_HEADLINE).run()
    assert fake.trained == []


def test_budget_scales_the_start_of_the_adversary(tmp_path):
    settings = StudySettings(tmp_path, tmp_path, budget=0.25)
    whole = study_config("studies/cifar/conditions/adversarial", StudySettings(tmp_path, tmp_path), [])
    part = study_config("studies/cifar/conditions/adversarial", settings, [])
    assert whole.objective.adversarial.start_step == 4 * part.objective.adversarial.start_step > 0
