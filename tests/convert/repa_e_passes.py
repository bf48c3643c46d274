"""One step of the REPA-E host's loop (`train_repae.py` at 3ad8046): its two passes through the model, and ours.

`python -m tests.convert.repa_e_passes` writes the fixture `repa_e_passes.safetensors` from the checkout that REPA_E_DIR
names; see tests/fixtures/README.md.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simflow_plugin.contracts import Autoencoder
from simflow_plugin.losses.pixel import L2Loss
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.models.sit import SiT
from simflow_plugin.objective import JointInputs, JointObjective, ObjectiveWeights
from simflow_plugin.posteriors.gaussian import FixedVariancePosterior
from tests.convert.peers import FIXTURES, import_from, read_parts

VAE_WEIGHT, MODEL_WEIGHT = 1.5, 0.5
"""The host's defaults of --vae-align-proj-coeff and --proj-coeff."""
KEPT = (
    "x_embedder.proj.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.bias",
    "blocks.1.mlp.fc2.bias",
    "projectors.0.4.weight",
    "final_layer.linear.bias",
)
"""Parameters whose gradients the fixture holds."""


def host_step(host: Any, inputs: dict[str, Tensor], path_type: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradient that reaches the VAE's latents and those of the model's parameters, by host name."""
    host.zero_grad(set_to_none=True)
    latents = inputs["latents"].clone().requires_grad_()
    settings = {"weighting": "uniform", "path_type": path_type, "prediction": "v"}
    drawn = {"time_input": inputs["t"].view(-1, 1, 1, 1), "noises": inputs["noise"]}
    host.requires_grad_(False).eval()
    first = host(latents, inputs["labels"], [inputs["features"]], {**settings, "align_only": True}, **drawn)
    (VAE_WEIGHT * first["proj_loss"].mean()).backward()
    host.requires_grad_(True).train()
    host.pos_embed.requires_grad_(False)
    second = host(
        latents.detach(), inputs["labels"], [inputs["features"]], {**settings, "align_only": False}, **drawn
    )
    (second["denoising_loss"].mean() + MODEL_WEIGHT * second["proj_loss"].mean()).backward()
    assert latents.grad is not None
    return latents.grad, {name: p.grad for name, p in host.named_parameters() if p.grad is not None}


class GivenDraws:
    """Draws that are given: the host's time and noise, a posterior without noise, and which labels drop out."""

    def __init__(self, inputs: dict[str, Tensor], dropped: Tensor | None = None) -> None:
        self._normal = {"noise": inputs["noise"], "posterior": torch.zeros_like(inputs["latents"])}
        kept = torch.ones(len(inputs["t"]))
        dropout = kept if dropped is None else torch.where(dropped, 0.0, 1.0)
        self._uniform = {"time": inputs["t"], "label_dropout": dropout}

    def normal(self, purpose, shape, device="cpu"):
        return self._normal[purpose]

    def uniform(self, purpose, shape, device="cpu"):
        return self._uniform[purpose]


class LatentsAreImages(Autoencoder):
    """Latents are what comes in, so that the gradient of the input is what reaches the VAE."""

    factor, trainable = 1, "full"

    def encode(self, images):
        return FixedVariancePosterior(images, torch.tensor(0.5))

    def decode(self, latents):
        return latents

    def last_layer(self) -> nn.Parameter:
        raise NotImplementedError


def our_step(
    model: SiT, inputs: dict[str, Tensor], labels: Tensor, dropped: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the same two as `host_step`, by our names, from one step of the joint objective in training mode."""
    reconstruction = ReconstructionLoss([("l2", 0.0, L2Loss(L2Loss.Options()))])
    weights = ObjectiveWeights(alignment=MODEL_WEIGHT, alignment_autoencoder=VAE_WEIGHT)
    joint = JointObjective(LatentsAreImages(), model, reconstruction, weights).train()
    latents = inputs["latents"].clone().requires_grad_()
    draws = GivenDraws(inputs, dropped)
    output = joint(JointInputs(latents, labels, inputs["features"], draws))
    output["loss"].backward()
    assert latents.grad is not None
    return latents.grad, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    """Write the fixture."""
    torch.set_num_threads(1)
    _, parts = read_parts("repa_e_sit")
    found: dict[str, Tensor] = {}
    for path_type in ("linear", "cosine"):
        sizes = {"input_size": 8, "hidden_size": 32, "decoder_hidden_size": 32, "depth": 2, "num_heads": 4}
        host = import_from("REPA_E_DIR", "models.sit").SiT(
            **sizes, encoder_depth=1, num_classes=5, z_dims=[12], projector_dim=16, qk_norm=False
        )
        host.load_state_dict(parts["host"])
        host.y_embedder.dropout_prob = 0.0
        of_latents, of_parameters = host_step(host, parts["inputs"], path_type)
        found[f"{path_type}.latents"] = of_latents
        found |= {f"{path_type}.{name}": of_parameters[name] for name in KEPT}
    save_file(found, FIXTURES / "repa_e_passes.safetensors")


if __name__ == "__main__":
    main()
