"""Runs of a few steps on digits at 8 x 8: small enough for a test, whole enough to be the real loop."""

import atexit
import functools
import json
import socket
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from simflow_plugin import registry
from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.contracts import ModelContext
from simflow_plugin.models.simflow import SimFlow
from simflow_plugin.options import Options
from simflow_plugin.runs.checkpoints import latest_checkpoint
from simflow_plugin.runs.parts import build_dataset, build_parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.training.interrupts import StopRequest
from simflow_plugin.training.loop import Trainer
from tests.data.makers import CORRUPT, png

FLOW = {"width": 16, "layers_per_block": [1, 1], "head_dim": 8, "patch_size": 2}
BACKBONE = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
TINY_OPTIONS = {
    "simflow": {"flow": FLOW},
    "starflow": {"flow": FLOW},
    "sit": {"backbone": BACKBONE, "sampling": {"num_steps": 2}},
    "dit": {"backbone": BACKBONE, "sampling": {"num_steps": 2}},
}
COUPLED = ("simflow",)
"""Models whose likelihood trains the encoder too; the others get a frozen one."""
ADVERSARIAL = {"width": 8, "num_layers": 1, "lecam_weight": 0.01, "start_step": 2}


class ToyEncoder(nn.Module):
    """A frozen encoder with 4 patch features of 6 channels."""

    class Options(Options):
        pass

    feature_dim = 6

    def __init__(self, options, context):
        super().__init__()
        self.projection = nn.Conv2d(3, 6, context.image_size // 2, stride=context.image_size // 2)
        self.requires_grad_(False)

    def encode(self, images):
        return self.projection(images).flatten(2).transpose(1, 2)


registry.ENCODERS.register("toy")(ToyEncoder)


@functools.cache
def tiny_teacher():
    """Return the teacher of a student: a flow with random weights, in a file that lives as long as the tests."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_teacher")
    atexit.register(folder.cleanup)
    file = Path(folder.name) / "model.safetensors"
    options = SimFlow.Options.model_validate(TINY_OPTIONS["simflow"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(SimFlow(options, ModelContext((4, 4, 4), 10)).state_dict(), file)
    return {"weights": str(file), "model": {"name": "simflow", **TINY_OPTIONS["simflow"]}}


def options_of(model):
    """Return the options of a tiny model by its name."""
    if model == "learned_inverse":
        return {"teacher": tiny_teacher(), "student": BACKBONE}
    return TINY_OPTIONS.get(model, {})


def tiny_values(model="simflow", **training):
    """Return the raw mapping of a tiny configuration; `training` overrides single keys of that section."""
    trainable = "full" if model is None or model in COUPLED else "none"
    return {
        "name": "tiny",
        "image_size": 8,
        "data": "digits",
        "autoencoder": {
            "name": "kl",
            "factor": 2,
            "latent_channels": 4,
            "widths": [8, 16],
            "layers_per_block": 1,
            "uses_mid_attention": False,
            "trainable": trainable,
        },
        "model": None if model is None else {"name": model, **options_of(model)},
        # Adam turns a gradient of pure rounding into a step of lr / (1 + eps / |g|); with this eps, into none, so that
        # runs whose sums are in another order stay as near as their gradients.
        "optimizer": {
            "lr": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 2,
            "weight_decay": 0.01,
            "eps": 1e-3,
        },
        "training": {
            "steps": 6,
            "batch_size": 8,
            "ema": {"decay": 0.9},
            "precision": "float32",
            "log_every": 2,
            "sample_every": 6,
            "checkpoint_every": 6,
            **training,
        },
        "sampling": {"guidance": 0.0, "grid_per_class": 1},
    }


def tiny_config(model="simflow", values=None, **training):
    """Return the resolved configuration."""
    return config_from_source(YamlSource(values or tiny_values(model, **training), {}, "tiny"))


class StopAfter(StopRequest):
    """As if a signal came during the n-th step of this process."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    @property
    def requested(self):
        self.left -= 1
        return self.left <= 0


def with_corrupt_images(values, root, num_corrupt=3):
    """Return `values` reading 32 pictures under `root`, which are written; the first ones are no pictures."""
    for index in range(32):
        path = root / "train" / str(index % 2) / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CORRUPT if index < num_corrupt else png(8 * index))
    return {**values, "data": {"name": "image_folder", "root": str(root), "max_corrupt_share": 0.2}}


def free_port():
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_trainer(config, path, stop=None, accelerator=None, **arguments):
    """Return a trainer as `simflow_plugin.train` builds it."""
    run = RunDirectory(path)
    dataset = build_dataset(config, "train")
    parts = build_parts(config, dataset.num_classes)
    run.prepare(config, [])
    accelerator = accelerator or Accelerator(cpu=True)
    return Trainer(config, run, parts, dataset, accelerator, stop or StopRequest(), **arguments)


def poison_images(trainer, steps):
    """Let the images of the given steps be NaN, as a broken sensor or a bad product would leave them."""
    forward = trainer._forward

    def poisoned(batch, images, adversary):
        return forward(batch, images * torch.nan if batch.step in steps else images, adversary)

    trainer._forward = poisoned


def poison_discriminator(trainer, steps):
    """Let the gradients of the discriminator be NaN in the given steps; its generator term stays as it is."""
    for parameter in trainer.adversary.loss.parameters():
        parameter.register_hook(lambda gradient: gradient * torch.nan if trainer.step in steps else gradient)


def losses_of(path):
    """Return the rows of the log without what depends on the clock."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def tensors_of(path):
    """Return every tensor of the newest checkpoint by file and name."""
    checkpoint = latest_checkpoint(path / "checkpoints")
    names = [file.stem for file in sorted(checkpoint.path.glob("*.safetensors"))]
    return {f"{name}/{key}": tensor for name in names for key, tensor in checkpoint.tensors(name).items()}


def assert_runs_equal(one, other):
    """Losses, weights, averages, optimizer states and samples of two runs are the same, bit for bit."""
    assert losses_of(one) == losses_of(other)
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
    grids = sorted(file.name for file in (one / "samples").iterdir())
    assert grids == sorted(file.name for file in (other / "samples").iterdir())
    assert all((one / "samples" / g).read_bytes() == (other / "samples" / g).read_bytes() for g in grids)
