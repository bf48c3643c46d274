"""The loop: what trains moves and what is frozen does not, for every model; its log; what it refuses."""

import errno
import time

import pytest
import torch

from simflow_plugin import registry
from simflow_plugin.errors import TrainingError
from simflow_plugin.runs.checkpoints import latest_checkpoint
from simflow_plugin.training import loop as loop_module
from simflow_plugin.training.interrupts import Interrupted
from tests.training.tiny_runs import (
    ADVERSARIAL,
    StopAfter,
    losses_of,
    make_trainer,
    poison_discriminator,
    poison_images,
    tiny_config,
    tiny_values,
)


def train(config, path, **arguments):
    trainer = make_trainer(config, path, **arguments)
    trainer.train()
    return trainer


def with_adversary(**training):
    """A run whose discriminator begins at step 2."""
    return tiny_config(
        values={**tiny_values("simflow", **training), "objective": {"adversarial": ADVERSARIAL}}
    )


def weights_before_and_after(config, path):
    trainer = make_trainer(config, path)
    before = {name: tensor.clone() for name, tensor in trainer.joint.named_parameters()}
    trainer.train()
    return before, dict(trainer.joint.named_parameters())


@pytest.mark.parametrize("model", [*registry.MODELS.names(), None])
def test_two_steps_move_what_trains_and_nothing_else(tmp_path, model):
    config = tiny_config(model, steps=2, log_every=1)
    before, after = weights_before_and_after(config, tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name, parameter in after.items() if parameter.requires_grad}
    assert moved <= trained
    parts = {name.split(".")[0] for name in trained}
    assert {name.split(".")[0] for name in moved} == parts
    assert "model" in parts or model is None


def test_frozen_encoder_stays_while_its_decoder_learns(tmp_path):
    values = tiny_values("starflow", steps=2)
    values["autoencoder"]["trainable"] = "decoder"
    before, after = weights_before_and_after(tiny_config(values=values), tmp_path / "run")
    for name, tensor in before.items():
        if "encoder" in name.split("."):
            assert torch.equal(tensor, after[name]), name
    assert any(not torch.equal(before[n], after[n]) for n in before if "decoder" in n.split("."))


def test_alignment_trains_its_projector_and_leaves_the_frozen_encoder(tmp_path):
    values = tiny_values("simflow", steps=2)
    values["alignment"] = {"encoder": "toy", "projector_dim": 8}
    trainer = make_trainer(tiny_config(values=values), tmp_path / "run")
    frozen = trainer.frozen.encoder.projection.weight.clone()
    projector = [p for n, p in trainer.joint.named_parameters() if "projector" in n]
    before = [p.detach().clone() for p in projector]
    trainer.train()
    assert torch.equal(trainer.frozen.encoder.projection.weight, frozen)
    assert not all(torch.equal(p, b) for p, b in zip(projector, before, strict=True))


def test_discriminator_trains_from_its_first_step_on(tmp_path):
    trainer = train(with_adversary(steps=4, log_every=2), tmp_path / "run")
    rows = losses_of(tmp_path / "run")
    assert "discriminator" not in rows[0]
    assert "discriminator" in rows[1]
    steps = {int(state["step"]) for state in trainer.adversary.optimizer.state.values()}
    assert steps == {2}


def test_same_seed_gives_the_same_losses_and_another_seed_others(tmp_path):
    values = tiny_values(steps=2, log_every=1)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny_config(values={**values, "seed": seed}), tmp_path / name)
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    assert losses_of(tmp_path / "a") != losses_of(tmp_path / "c")


def test_accumulated_micro_batches_give_the_losses_of_the_whole_batch(tmp_path):
    for accumulation in (1, 4):
        config = tiny_config(steps=4, log_every=1, accumulation=accumulation)
        train(config, tmp_path / str(accumulation))
    whole, parts = ([row["loss"] for row in losses_of(tmp_path / name)] for name in ("1", "4"))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_clock_that_goes_backwards_gives_no_negative_times(tmp_path, monkeypatch):
    """The loop never asks the wall clock, which an administrator or NTP may set back."""
    now = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    trainer = train(tiny_config(steps=2, log_every=1), tmp_path / "run")
    rows = trainer.run_directory.read_metrics()
    assert all(row["seconds"] >= 0 and row["images_per_second"] > 0 for row in rows)
    assert rows[0]["seconds"] <= rows[1]["seconds"]
    assert trainer.seconds >= 0


def test_full_disk_while_logging_stops_with_a_message(tmp_path, monkeypatch):
    trainer = make_trainer(tiny_config(steps=4, log_every=1, checkpoint_every=2), tmp_path / "run")
    log = loop_module.Tracker.log

    def full(self, row):
        if row["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        log(self, row)

    monkeypatch.setattr(loop_module.Tracker, "log", full)
    with pytest.raises(TrainingError, match=r"the disk is full.*step_00000002"):
        trainer.train()
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == 2


def test_profile_writes_a_chrome_trace(tmp_path):
    train(tiny_config(steps=4), tmp_path / "run", profile_steps=1)
    text = (tmp_path / "run" / "trace.json").read_text()
    assert '"traceEvents"' in text
    assert "aten::" in text


@pytest.mark.parametrize("model", ["simflow", "sit"])
def test_batch_that_is_not_finite_is_skipped_and_counted_and_the_run_goes_on(tmp_path, model):
    trainer = make_trainer(tiny_config(model, steps=4, log_every=4), tmp_path / "run")
    poison_images(trainer, steps={1})
    trainer.train()
    (row,) = losses_of(tmp_path / "run")
    assert row["skipped_steps"] == 1
    assert row["loss"] is not None
    assert "loss" in row["not_finite"]
    assert all(torch.isfinite(p).all() for p in trainer.joint.parameters())


def test_term_that_begins_between_two_rows_is_a_mean_over_its_own_steps(tmp_path):
    logged = []
    for name, log_every in (("every_step", 1), ("one_row", 4)):
        train(with_adversary(steps=4, log_every=log_every), tmp_path / name)
        logged.append(losses_of(tmp_path / name))
    own_steps = [row["discriminator"] for row in logged[0] if "discriminator" in row]
    assert len(own_steps) == 2
    assert logged[1][0]["discriminator"] == pytest.approx(sum(own_steps) / 2, rel=1e-5)


def test_running_statistics_stay_finite_after_a_batch_that_is_not(tmp_path):
    """REPA-E normalises samples by them: once infinite they would spoil every later sample, though no later loss."""
    values = tiny_values("sit", steps=3)
    values["model"]["normalizes_latents"] = True
    trainer = make_trainer(tiny_config(values=values), tmp_path / "run")
    before = trainer.joint.model.latent_norm.running_mean.clone()
    poison_images(trainer, steps={1})
    trainer.train()
    norm = trainer.joint.model.latent_norm
    assert trainer.bad_steps.read()["skipped_steps"] == (1, 0)
    assert all(torch.isfinite(tensor).all() for tensor in (norm.running_mean, norm.running_var))
    assert not torch.equal(norm.running_mean, before)
    averaged = [tensor for name, tensor in trainer.averages.main.average.items() if "running" in name]
    assert averaged
    assert all(torch.isfinite(tensor).all() for tensor in averaged)


def test_bad_batch_right_after_resuming_falls_back_on_what_the_checkpoint_held(tmp_path):
    values = tiny_values("sit", steps=4)
    values["model"]["normalizes_latents"] = True
    config = tiny_config(values=values)
    with pytest.raises(Interrupted):
        make_trainer(config, tmp_path / "stopped", StopAfter(2)).train()
    found = []
    for name in ("whole", "stopped"):
        trainer = make_trainer(config, tmp_path / name)
        poison_images(trainer, steps={2})
        trainer.train()
        found.append(trainer.joint.model.latent_norm.running_mean)
    assert torch.equal(*found)


def test_bad_batches_in_a_row_stop_the_run_and_name_the_terms(tmp_path):
    config = tiny_config("simflow", steps=6, log_every=2, max_bad_steps=3)
    trainer = make_trainer(config, tmp_path / "run")
    poison_images(trainer, steps={1, 2, 3, 4, 5})
    with pytest.raises(TrainingError, match=r"steps in a row .*terms not finite: .*nll"):
        trainer.train()


def test_discriminators_skipped_step_is_not_a_skipped_step_of_the_run(tmp_path):
    trainer = make_trainer(with_adversary(log_every=6, max_bad_steps=6), tmp_path / "run")
    poison_discriminator(trainer, steps={3, 4})
    trainer.train()
    (row,) = losses_of(tmp_path / "run")
    assert row["skipped_steps"] == 0
    assert row["skipped_discriminator_steps"] == 2
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").state["skipped_steps"] == 0


def test_discriminator_that_never_steps_stops_the_run(tmp_path):
    trainer = make_trainer(with_adversary(log_every=6, max_bad_steps=3), tmp_path / "run")
    poison_discriminator(trainer, steps={2, 3, 4, 5})
    with pytest.raises(TrainingError, match=r"4 steps in a row had a loss or gradient of the discriminator"):
        trainer.train()


@pytest.mark.parametrize("part", ["autoencoder", "model"])
def test_steps_without_any_gradient_of_a_part_are_named_counted_and_stop_the_run(tmp_path, caplog, part):
    """As after an underflow in half precision: the loss is finite, and nothing is learned any more."""
    trainer = make_trainer(tiny_config("simflow", steps=8, log_every=2, max_bad_steps=4), tmp_path / "run")
    for parameter in getattr(trainer.joint, part).parameters():
        parameter.register_hook(lambda gradient: gradient * (0.0 if trainer.step >= 1 else 1.0))
    with pytest.raises(
        TrainingError, match=rf"5 steps in a row left every gradient of the {part} exactly zero"
    ):
        trainer.train()
    rows = losses_of(tmp_path / "run")
    assert [row[f"zero_gradient_steps_{part}"] for row in rows] == [1, 3, 5]
    assert {row["skipped_steps"] for row in rows} == {0}
    assert f"step 2: every gradient of the {part} was exactly zero in 1 steps" in caplog.text


def test_model_without_a_loss_of_its_own_may_have_no_gradient(tmp_path):
    values = tiny_values("simflow", steps=3, log_every=1, max_bad_steps=1)
    values["objective"] = {"beta": 0.0}
    trainer = train(tiny_config(values=values), tmp_path / "run")
    assert trainer.step == 3


def test_learning_rate_of_each_part_is_logged_under_its_name(tmp_path):
    values = tiny_values("simflow", steps=4, log_every=1)
    values["objective"] = {"adversarial": {**ADVERSARIAL, "learning_rate": 3e-4}}
    values["optimizer"] = {"lr": 1e-3, "autoencoder_lr": 1e-4, "warmup_steps": 4}
    train(tiny_config(values=values), tmp_path / "run")
    rows = losses_of(tmp_path / "run")
    assert [row["lr_model"] for row in rows] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert [row["lr_autoencoder"] for row in rows] == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4])
    assert {row["lr_discriminator"] for row in rows} == {3e-4}
    assert all("lr" not in row for row in rows)
