"""Moving averages of the weights: their recurrence, what they cover, and that a run keeps and restores them."""

import pytest
import torch
from torch import nn

from simflow_plugin.runs.checkpoints import checkpoint_folders, latest_checkpoint, read_checkpoint
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.power_averages import exponent_of_length, power_decay
from simflow_plugin.training.ema import MovingAverage, averaged_tensors, exponential_decay
from simflow_plugin.training.interrupts import Interrupted
from tests.training.tiny_runs import StopAfter, assert_runs_equal, make_trainer, tiny_config, tiny_values


def test_average_follows_its_recurrence_and_is_applied_only_within_the_block():
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    ema = MovingAverage(averaged_tensors(module), exponential_decay(0.5))
    module.weight.data.fill_(3.0)
    ema.update(averaged_tensors(module), step=1000)
    with ema.applied(module):
        assert float(module.weight.detach()) == pytest.approx(2.0)
        assert not module.training
    assert float(module.weight.detach()) == 3.0
    assert module.training


def test_average_leaves_frozen_parts_in_eval_mode():
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    module[1].eval()
    ema = MovingAverage(averaged_tensors(module), exponential_decay(0.5))
    with ema.applied(module):
        pass
    assert module[0].training
    assert not module[1].training


def test_running_statistics_of_a_batch_norm_are_averaged_with_the_weights():
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(2, affine=False), torch.nn.Conv2d(2, 1, 1))
    ema = MovingAverage(averaged_tensors(module), exponential_decay(0.5))
    module(torch.full((4, 2, 3, 3), 10.0) + torch.randn(4, 2, 3, 3))
    ema.update(averaged_tensors(module), step=1000)
    live = module[0].running_mean.clone()
    with ema.applied(module):
        torch.testing.assert_close(module[0].running_mean, live / 2)
    torch.testing.assert_close(module[0].running_mean, live)


def test_frozen_batch_norm_is_not_averaged():
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(2).eval(), torch.nn.Conv2d(2, 1, 1))
    assert not any("running" in name for name in averaged_tensors(module))


def test_warmup_lowers_the_decay_until_it_reaches_its_own():
    warm, plain = exponential_decay(0.9999), exponential_decay(0.9999, has_warmup=False)
    assert [warm(step) for step in (0, 8, 990)] == pytest.approx([0.1, 0.5, 0.991])
    assert warm(89_980) < 0.9999
    assert warm(89_991) == 0.9999
    assert plain(0) == 0.9999


def averaged_names(path, model, includes_autoencoder=None, mode=None, **model_options):
    values = tiny_values(model, steps=2)
    values["model"] |= model_options
    values["training"]["ema"] |= {"includes_autoencoder": includes_autoencoder}
    if mode is not None:
        values["autoencoder"]["trainable"] = "full"
        values["alignment"] = {"encoder": "toy", "mode": mode, "projector_dim": 8}
    trainer = make_trainer(tiny_config(values=values), path)
    trainer.train()
    return {name.split(".")[0] for name in trainer.averages.main.average}


@pytest.mark.parametrize(
    ("model", "mode", "includes", "parts"),
    [
        ("simflow", None, None, {"autoencoder", "model"}),
        ("simflow", "repa_e", None, {"autoencoder", "model"}),
        ("sit", "repa_e", None, {"model"}),
        ("sit", "repa_e", True, {"autoencoder", "model"}),
        ("dit", "repa_e", None, {"model"}),
        ("simflow", None, False, {"model"}),
    ],
)
def test_autoencoder_is_averaged_unless_only_the_alignment_moves_it(tmp_path, model, mode, includes, parts):
    assert averaged_names(tmp_path / "run", model, includes, mode) == parts
    loaded = load_run(tmp_path / "run", "cpu")  # the rest comes from the last weights
    if "autoencoder" not in parts:
        last = loaded.checkpoint.tensors("joint")
        for name, tensor in loaded.autoencoder.state_dict().items():
            assert torch.equal(tensor, last[f"autoencoder.{name}"])


POWER = {"kind": "power", "lengths": [0.05, 0.15], "snapshot_every": 2}


POWER_CONFIG = {"steps": 24, "ema": POWER, "checkpoint_every": 8, "log_every": 24, "sample_every": 24}


@pytest.fixture(scope="module")
def power_run(tmp_path_factory):
    """A run of 24 steps that keeps two lengths; with the true average of a third, made step by step."""
    path, length = tmp_path_factory.mktemp("power") / "run", 0.1
    config = tiny_config("simflow", **POWER_CONFIG)
    trainer = make_trainer(config, path)
    exponent = exponent_of_length(length)
    truth = MovingAverage(trainer.engine.averaged(), lambda step: power_decay(exponent, step))
    update = trainer.averages.update

    def update_both(tensors, step):
        update(tensors, step)
        truth.update(tensors, step)

    trainer.averages.update = update_both
    trainer.train()
    return path, length, truth.average


def flat(tensors):
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def weights_of(loaded):
    parts = (("autoencoder", loaded.autoencoder), ("model", loaded.model))
    return {f"{part}.{name}": p for part, module in parts for name, p in module.named_parameters()}


def test_snapshots_of_averages_outlive_checkpoints(power_run):
    path, _, _ = power_run
    steps = [int(folder.name.removeprefix("step_")) for folder in checkpoint_folders(path / "averages")]
    assert steps == list(range(2, 25, 2))
    last = read_checkpoint(checkpoint_folders(path / "averages")[-1])
    checkpoint = latest_checkpoint(path / "checkpoints")
    for name in ("ema", "ema_1"):
        kept, saved = last.tensors(name), checkpoint.tensors(name)
        assert all(torch.equal(kept[key], saved[key]) for key in saved)


def test_length_that_was_kept_is_given_as_it_is(power_run):
    path, _, _ = power_run
    loaded = load_run(path, "cpu", ema_length=0.15)
    kept = loaded.checkpoint.tensors("ema_1")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights_of(loaded).items())


def test_another_length_is_made_of_the_snapshots(power_run):
    path, length, truth = power_run
    loaded = load_run(path, "cpu", ema_length=length)
    names = weights_of(loaded).keys()
    true = flat({name: truth[name] for name in names})
    distance = [
        float((flat({name: tensors[name] for name in names}) - true).norm())
        for tensors in (
            weights_of(loaded),
            loaded.checkpoint.tensors("ema"),
            loaded.checkpoint.tensors("ema_1"),
        )
    ]
    assert distance[0] < 0.1 * min(distance[1:])


def test_power_function_averages_of_a_run_resumed_in_between_are_bitwise_equal(power_run, tmp_path):
    path, _, _ = power_run
    config = tiny_config("simflow", **POWER_CONFIG)
    with pytest.raises(Interrupted):
        make_trainer(config, tmp_path / "run", StopAfter(11)).train()
    make_trainer(config, tmp_path / "run").train()
    assert_runs_equal(path, tmp_path / "run")
    folders = [checkpoint_folders(run / "averages") for run in (path, tmp_path / "run")]
    for ours, theirs in zip(*folders, strict=True):
        assert ours.name == theirs.name
        assert (ours / "manifest.json").read_bytes() == (theirs / "manifest.json").read_bytes()
