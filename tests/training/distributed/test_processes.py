"""Two processes on the CPU (gloo): the losses of one, checkpoints that move between counts, files without races."""

import numpy as np
import pytest
import torch
from torch import distributed, nn

from simflow_plugin.errors import ConfigError
from simflow_plugin.losses.perceptual import freeze
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.objective import JointObjective, ObjectiveWeights, layer_class_names
from simflow_plugin.runs.checkpoints import read_checkpoint
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import make_accelerator
from simflow_plugin.training.distributed.processes import (
    configure_engine,
    convert_batch_norms,
    keep_frozen_at_home,
)
from simflow_plugin.training.interrupts import Interrupted
from tests.training.tiny_runs import (
    ADVERSARIAL,
    StopAfter,
    losses_of,
    make_trainer,
    tensors_of,
    tiny_config,
    tiny_values,
    with_corrupt_images,
)
from tests.training.toys import CoupledModel, LinearAutoencoder
from tests.training.two_processes import in_two_processes

PLAIN = tiny_values("simflow", log_every=1)
# Batch statistics and the adaptive weight are those of a process's own rows, so that they differ by design.
INDEPENDENT_ROWS = {**ADVERSARIAL, "norm": "none", "uses_adaptive_weight": False, "lecam_weight": 0.0}
WITH_ADVERSARY = {**tiny_values("simflow", log_every=1), "objective": {"adversarial": INDEPENDENT_ROWS}}
SHARDED = {"reshard_after_forward": True, "auto_wrap_policy": "transformer_based_wrap"}
WITH_ALIGNMENT = {
    **PLAIN,
    "alignment": {"encoder": "toy", "projector_dim": 8, "autoencoder_weight": 1.5},
}


def with_repa_e():
    """SiT whose alignment reaches the autoencoder by a pass of its own, with two averages and their snapshots."""
    values = tiny_values("sit", log_every=1, ema={"kind": "power", "snapshot_every": 2})
    values["autoencoder"]["trainable"] = "full"
    return {**values, "alignment": WITH_ALIGNMENT["alignment"]}


WITH_REPA_E = with_repa_e()
WITH_CACHES = tiny_values("starflow", log_every=1, cache_latents=True)
RUNS = [
    {"name": "ddp_caches", "values": WITH_CACHES},
    {"name": "ddp", "values": WITH_ADVERSARY},
    {"name": "fsdp", "values": WITH_ADVERSARY, "fsdp": SHARDED},
    {"name": "fsdp_alignment", "values": WITH_ALIGNMENT, "fsdp": SHARDED},
    {"name": "ddp_repa_e", "values": WITH_REPA_E},
    {"name": "fsdp_repa_e", "values": WITH_REPA_E, "fsdp": SHARDED},
    {"name": "grown", "values": PLAIN},
    {"name": "grown_sharded", "values": PLAIN, "fsdp": SHARDED},
    {"name": "shrunk", "values": PLAIN, "stop_after": 3},
    {"name": "shrunk_sharded", "values": PLAIN, "fsdp": SHARDED, "stop_after": 3},
    {"name": "skipped", "values": PLAIN, "fsdp": SHARDED, "poisoned_steps": [2]},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of all runs: those on two processes, and the ones on one process to compare with."""
    out = tmp_path_factory.mktemp("runs")
    one = {"one": PLAIN, "one_with_adversary": WITH_ADVERSARY, "one_with_alignment": WITH_ALIGNMENT}
    one["one_with_repa_e"] = WITH_REPA_E
    for name, values in one.items():
        make_trainer(tiny_config(values=values), out / name).train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMFLOW_DATA", str(out / "cache_of_one"))
        make_trainer(tiny_config(values=WITH_CACHES), out / "one_with_caches").train()
    for name in ("grown", "grown_sharded"):
        with pytest.raises(Interrupted):
            make_trainer(tiny_config(values=PLAIN), out / name, StopAfter(3)).train()
    corrupt = with_corrupt_images(PLAIN, out / "images")
    make_trainer(tiny_config(values=corrupt), out / "one_corrupt").train()
    on_cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**on_cpu, "SIMFLOW_DATA": str(out / "caches_of_two")}
    in_two_processes(
        "tests.training.worker", out, [*RUNS, {"name": "corrupt", "values": corrupt}], environment
    )
    return out


def assert_same_losses(one, other, keys=("loss", "l2", "nll", "grad_norm")):
    for key in keys:
        reference = [row[key] for row in losses_of(one)]
        assert [row[key] for row in losses_of(other)] == pytest.approx(reference, rel=1e-4), key


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one(runs, name):
    assert_same_losses(runs / "one_with_adversary", runs / name)
    discriminator = [row.get("discriminator") for row in losses_of(runs / "one_with_adversary")][2:]
    assert [row.get("discriminator") for row in losses_of(runs / name)][2:] == pytest.approx(
        discriminator, rel=1e-4
    )


def test_cache_that_two_processes_built_is_that_of_one(runs):
    assert_same_losses(runs / "one_with_caches", runs / "ddp_caches", ("loss", "nll"))
    one, two = (
        next((runs / folder).glob("moments/*/values.npy")) for folder in ("cache_of_one", "caches_of_two")
    )
    assert one.parent.name == two.parent.name
    np.testing.assert_allclose(np.load(two), np.load(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("one", "two"),
    [("one", "grown"), ("one", "grown_sharded"), ("one_with_alignment", "fsdp_alignment")],
    ids=["goes_on_with_two", "goes_on_sharded", "gradient_within_the_forward_pass_goes_through_shards"],
)
def test_losses_of_one_process_are_those_of_two(runs, one, two):
    """An alignment that weighs more for the autoencoder than for the model goes back through the model twice."""
    assert_same_losses(runs / one, runs / two)


@pytest.mark.parametrize("name", ["ddp_repa_e", "fsdp_repa_e"])
def test_pass_that_moves_the_autoencoder_alone_gives_the_losses_of_one_process(runs, name):
    terms = ("loss", "denoising", "alignment", "alignment_autoencoder")
    assert_same_losses(
        runs / "one_with_repa_e", runs / name, (*terms, "grad_norm_autoencoder", "grad_norm_model")
    )


@pytest.mark.parametrize("name", ["ddp_repa_e", "fsdp_repa_e"])
def test_snapshots_of_averages_are_whole_whatever_the_sharding(runs, name):
    """Up to what Adam makes of rounding."""
    for step in (2, 4, 6):
        whole, other = (
            read_checkpoint(runs / run / "averages" / f"step_{step:08d}") for run in ("one_with_repa_e", name)
        )
        for file in ("ema", "ema_1"):
            reference, found = whole.tensors(file), other.tensors(file)
            assert reference.keys() == found.keys()
            for key in reference:
                torch.testing.assert_close(found[key], reference[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_checkpoint_of_two_processes_holds_the_weights_of_one(runs, name):
    """Adam divides by the root of a mean square, which magnifies rounding where gradients are tiny."""
    whole, other = tensors_of(runs / "one_with_adversary"), tensors_of(runs / name)
    assert whole.keys() == other.keys()
    for key in whole:
        if key.startswith(("joint/", "ema/", "adversary/")):
            torch.testing.assert_close(other[key], whole[key], rtol=1e-3, atol=1e-4, msg=key)


def test_corrupt_images_are_counted_over_both_processes(runs):
    one, two = (losses_of(runs / name) for name in ("one_corrupt", "corrupt"))
    assert [row.get("corrupt_images") for row in two] == [row.get("corrupt_images") for row in one]
    assert two[-1]["corrupt_images"] == 3


@pytest.mark.parametrize("name", ["shrunk", "shrunk_sharded"])
def test_run_of_two_processes_goes_on_with_one(runs, name):
    """Stopped by a signal that only the second process received."""
    assert [row["step"] for row in losses_of(runs / name)][:3] == [1, 2, 3]
    make_trainer(tiny_config(values=PLAIN), runs / name).train()
    assert_same_losses(runs / "one", runs / name)


def test_step_that_is_not_finite_on_one_process_is_skipped_by_all(runs):
    assert [row["skipped_steps"] for row in losses_of(runs / "skipped")] == [0, 0, 1, 1, 1, 1]
    assert all(tensor.isfinite().all() for tensor in tensors_of(runs / "skipped").values())


@pytest.mark.parametrize("name", ["ddp", "fsdp", "grown"])
def test_files_are_written_once_by_one_process(runs, name):
    assert [row["step"] for row in RunDirectory(runs / name).read_metrics()] == [1, 2, 3, 4, 5, 6]
    assert [file.name for file in (runs / name / "samples").iterdir()] == ["step_00000006.png"]
    folders = {folder.name for folder in (runs / name / "checkpoints").iterdir()}
    assert "step_00000006" in folders
    assert not any(folder.startswith(".") for folder in folders)


@pytest.mark.parametrize(
    ("kind", "name"), [("MEGATRON_LM", "MEGATRON_LM"), ("DEEPSPEED", "DEEPSPEED"), ("FSDP", "FSDP version 1")]
)
def test_engine_that_the_loop_does_not_run_is_refused(kind, name):
    from accelerate.utils import DistributedType

    class Configured:
        distributed_type = DistributedType[kind]
        is_fsdp2 = False

    with pytest.raises(ConfigError, match=rf"{name}, which this loop does not support.*fsdp2_zero3\.yaml"):
        configure_engine(Configured())


def test_deepspeed_is_refused_before_it_is_imported(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"for DeepSpeed, which this loop.*fsdp2_zero3\.yaml"):
        make_accelerator(tiny_config("simflow"))


def test_transformer_layers_are_the_units_of_sharding(tmp_path):
    trainer = make_trainer(tiny_config(values=PLAIN), tmp_path / "run")
    assert layer_class_names(trainer.joint.model) == ["Layer"]


@pytest.fixture
def joint_with_norms():
    """Batch norms in the model, which trains, and in a frozen perceptual backbone, whose weights are buffers."""
    model = CoupledModel()
    model.norm = nn.BatchNorm2d(3)
    backbone = freeze(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    reconstruction = ReconstructionLoss([("frozen", 1.0, backbone)])
    return JointObjective(LinearAutoencoder(), model, reconstruction, ObjectiveWeights())


def test_batch_norms_are_synchronised_where_they_train_and_left_alone_where_frozen(joint_with_norms):
    convert_batch_norms(joint_with_norms)
    assert isinstance(joint_with_norms.model.norm, nn.SyncBatchNorm)
    frozen = [m for m in joint_with_norms.reconstruction.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(frozen) == 1


def test_frozen_backbones_are_not_broadcast_at_every_step(joint_with_norms, gloo_group_of_one):
    keep_frozen_at_home(joint_with_norms)
    wrapped = nn.parallel.DistributedDataParallel(joint_with_norms)
    sent = {name for name, _ in wrapped.named_module_buffers.items()}
    assert sent == {"model.norm.running_mean", "model.norm.running_var", "model.norm.num_batches_tracked"}


@pytest.fixture
def gloo_group_of_one(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
