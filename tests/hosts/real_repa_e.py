"""Run one script of a real REPA-E checkout on the CPU in a few seconds: `python real_repa_e.py SCRIPT FOLDER OPTIONS`.

Only what needs the network or a GPU is replaced, in memory: the perceptual network, DINOv2, the tracker, CUDA and
NCCL, packages that are not installed; and width, so that a step takes seconds. The script runs as it is.
"""

import argparse
import io
import json
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

NUM_IMAGES = 4
VAE_WIDTH = 32
FEATURE_DIM = 16


class Dots(dict):
    """In place of dictdot and omegaconf: access by attribute."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = self.get(name)  # None for a missing one, as in dictdot
        return Dots(value) if isinstance(value, dict) else value


class TinyEncoder(nn.Module):
    """In place of DINOv2: the same keys, 16 x 16 patch tokens."""

    embed_dim = FEATURE_DIM

    def forward_features(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images, 16).flatten(2).transpose(1, 2)
        return {"x_norm_patchtokens": pooled.repeat(1, 1, FEATURE_DIM)[..., :FEATURE_DIM]}


class FlatPerception(nn.Module):
    """In place of the perceptual network, whose weights are a download."""

    def __init__(self, name=None):
        super().__init__()

    def forward(self, images, reconstructions):
        return (images - reconstructions).square().mean()


class Tracker:
    """In place of the trackers: writes what is logged as JSON lines."""

    def __init__(self, file):
        self.file = file

    def log(self, values, step=None, **_):
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        if numbers:
            with self.file.open("a") as out:
                out.write(json.dumps({"step": step, **numbers}) + "\n")


def stub(name, **members):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # who looks whether it is installed finds it
    vars(module).update(members)
    sys.modules[name] = module


def make_data(folder):
    rng = np.random.default_rng(0)
    names = [f"img{i}.png" for i in range(NUM_IMAGES)]
    with h5py.File(folder / "images.h5", "w") as file:
        for name in names:
            png = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(png, "png")
            file[name] = np.frombuffer(png.getvalue(), dtype=np.uint8)
        labels = json.dumps({"labels": [[name, i % 10] for i, name in enumerate(names)]})
        file["dataset.json"] = np.frombuffer(labels.encode(), dtype=np.uint8)
    (folder / "images_h5.json").write_text(json.dumps(names))


def make_weights(folder, name):
    from models.autoencoder import vae_models

    channels = 64 if "f16d64" in name else 32 if "f16" in name else 4
    torch.manual_seed(0)
    torch.save(vae_models[name]().state_dict(), folder / "vae.pt")
    statistics = {
        "latents_scale": torch.ones(1, channels, 1, 1),
        "latents_bias": torch.zeros(1, channels, 1, 1),
    }
    torch.save(statistics, folder / "vae-latents-stats.pt")


def replace_the_heavy(folder, sit_width):
    import accelerate
    import loss.losses
    import models.autoencoder as autoencoder
    import models.sit as sit
    import utils

    loss.losses.PerceptualLoss = FlatPerception
    utils.load_encoders = lambda types, device, resolution=256: (
        [TinyEncoder().to(device)],
        ["dinov2"],
        ["vit"],
    )
    for part in (autoencoder.Encoder, autoencoder.Decoder):
        part.__init__.__kwdefaults__["ch"] = VAE_WIDTH
    if sit_width:  # the host's own model, small: the factories pass the published sizes
        full = sit.SiT.__init__

        def small(self, **options):
            sizes = {"hidden_size": sit_width, "decoder_hidden_size": sit_width, "depth": 3, "num_heads": 4}
            full(self, **{**options, **sizes})

        sit.SiT.__init__ = small
    else:
        from simflow_plugin.flow import SIZES

        small_shape = {"width": 64, "layers_per_block": (1, 3), "head_dim": 16}
        SIZES["S"], SIZES["simflow-xxl"] = small_shape, {**SIZES["simflow-xxl"], **small_shape}
    tracker = Tracker(folder / "log.jsonl")
    accelerate.Accelerator.init_trackers = lambda self, *args, **options: None
    accelerate.Accelerator.log = lambda self, values, step=None, **options: tracker.log(values, step)
    sample_count = torch.randint

    def few(*args, size=None, **options):  # the loop draws 64 labels and noises to sample from
        return (
            sample_count(*args, size=(2,) if size == (64,) else size, **options)
            if size
            else sample_count(*args, **options)
        )

    torch.randint = few


def without_cuda():
    """Let generate.py, which asks for CUDA and NCCL, run on the CPU."""
    import torch.distributed as dist

    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda device: None
    torch.cuda.empty_cache = lambda: None
    dist.init_process_group = lambda backend: None
    dist.get_rank = lambda: 0
    dist.get_world_size = lambda: 1
    dist.broadcast = lambda tensor, src: None
    dist.barrier = lambda: None
    dist.destroy_process_group = lambda: None
    load, tensor, randn, randint = torch.load, torch.tensor, torch.randn, torch.randint

    def on_cpu(function):
        def call(*args, **options):
            options.pop("device", None)
            return function(*args, **options)

        return call

    nn.Module.to = lambda self, *args, **options: self
    torch.Tensor.cuda = lambda self, *args: self
    original_to = torch.Tensor.to
    torch.Tensor.to = lambda self, *args, **options: (
        self if args and isinstance(args[0], int) else original_to(self, *args, **options)
    )
    torch.load = lambda file, map_location=None, **options: load(file, map_location="cpu", **options)
    torch.tensor, torch.randn, torch.randint = on_cpu(tensor), on_cpu(randn), on_cpu(randint)


def main():
    script, folder, *options = sys.argv[1:]
    folder = Path(folder)
    sys.path.insert(0, str(Path(script).parent))
    stub("dictdot", dictdot=Dots)

    def load_yaml(path):
        import yaml

        loaded = yaml.safe_load(Path(path).read_text())
        loaded["losses"]["kl_weight"] = float(loaded["losses"]["kl_weight"])  # `1e-6` is text to pyyaml
        return Dots(loaded)

    stub("omegaconf", OmegaConf=type("OmegaConf", (), {"load": staticmethod(load_yaml)}))
    stub("wandb", Image=lambda array: array)
    torchvision.models  # noqa: B018  (loss.perceptual_loss imports it)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--sit-width", type=int, default=0)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--resume-from", default=None)
    parser.add_argument("--compile-backend", default=None)  # inductor takes minutes on a CPU
    own, options = parser.parse_known_args(options)
    if not (folder / "images.h5").exists():
        make_data(folder)
    replace_the_heavy(folder, own.sit_width)
    if own.weights:
        make_weights(folder, own.weights)
    if own.compile_backend:
        compile_ = torch.compile
        torch.compile = lambda model, backend, mode: compile_(model, backend=own.compile_backend)
    if own.resume_from:  # the host reads args.cont_dir, which no option of its own defines
        argparse.Namespace.cont_dir = own.resume_from
    torch.serialization.add_safe_globals([argparse.Namespace])
    if script.endswith("generate.py"):
        without_cuda()
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
