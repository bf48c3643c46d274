"""Every configuration that ships trains one step at reduced width, with stand-ins for data and frozen encoders."""

import pytest

from simflow_plugin import registry
from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.yaml_source import read_yaml_source, shipped_configs
from simflow_plugin.contracts import Example
from simflow_plugin.options import Options
from tests.training.tiny_runs import make_trainer

WIDTH = {
    "simflow": {"flow": {"size": None, "width": 16, "head_dim": 8, "attention": "sdpa"}},
    "sit": {"backbone": {"width": 16, "depth": 2, "num_heads": 2}, "sampling": {"num_steps": 2}},
}
WIDTH["starflow"], WIDTH["dit"] = WIDTH["simflow"], WIDTH["sit"]


class LabelledNoise:
    """Eight images of noise in three classes."""

    class Options(Options):
        pass

    num_classes, class_names = 3, None

    def __init__(self, options, context):
        import torch

        generator = torch.Generator().manual_seed(0)
        side = context.image_size
        self.images = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Example(self.images[index], index % 3)


registry.DATASETS.register("labelled_noise")(LabelledNoise)


def reduced(name):
    """Return the configuration with the same parts, small: fewer channels and layers, 2 x 2 patches of latents."""
    values = read_yaml_source(name).values
    autoencoder = values["autoencoder"]
    autoencoder |= {"factor": 2, "widths": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
    autoencoder |= {"pretrained": None, "uses_mid_attention": False}
    for key in ("pretrained_format", "subfolder", "architecture"):
        autoencoder.pop(key, None)
    model, patch = values.get("model"), 1
    if model is not None:
        part = "flow" if "flow" in WIDTH[model["name"]] else "backbone"
        patch = model.get(part, {}).get("patch_size", 1 if part == "flow" else 2)
        for section, options in WIDTH[model["name"]].items():
            model[section] = {**model.get(section, {}), **options}
        if part == "flow":
            layers = model["flow"].get("layers_per_block", [1] * 6)
            model["flow"]["layers_per_block"] = [1] * (len(layers) - 1) + [2]
    values["image_size"] = 8 * patch
    objective = values.get("objective", {})
    if objective.get("reconstruction"):
        for perceptual in ("lpips", "timm"):  # their networks are files, or a package
            objective["reconstruction"].pop(perceptual, None)
    if objective.get("adversarial") is not None:
        objective["adversarial"] |= {"width": 8, "num_layers": 1, "start_step": 0}
    if values.get("alignment"):
        values["alignment"] |= {"encoder": "toy", "projector_dim": 8, "layer": 1}
    values["data"] = "labelled_noise"
    values["evaluation"] = {"judge": "none"}
    values["optimizer"] = {**values.get("optimizer", {}), "warmup_steps": 0}
    values["training"] |= {
        "steps": 1,
        "batch_size": 4,
        "precision": "float32",
        "num_workers": 0,
        "accumulation": 1,
    }
    values["sampling"] = {**values.get("sampling", {}), "grid_per_class": 1}
    return config_from_source(type(read_yaml_source(name))(values, {}, name))


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configuration_trains_a_step_at_reduced_width(tmp_path, name):
    trainer = make_trainer(reduced(name), tmp_path / "run")
    trainer.train()
    assert trainer.step == 1
    assert set(trainer.bad_steps.read().values()) == {(0, 0)}  # no step skipped, none without gradients
    (row,) = trainer.run_directory.read_metrics()
    assert row["loss"] == row["loss"]
