"""The routing on the real models: which gradients reach the encoder through the joint objective.

The reconstruction weighs nothing and the posterior's variance is fixed, so the encoder's gradient is that of the model.
"""

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.objective import JointInputs, JointObjective, ObjectiveWeights
from simflow_plugin.randomness import BatchRandom
from simflow_plugin.registry import MODELS
from tests.models.diffusion_settings import BACKBONE
from tests.training.toys import LinearAutoencoder

FLOW = {"width": 16, "head_dim": 8, "layers_per_block": [1, 2], "patch_size": 2}
OPTIONS = {
    "sit": {"backbone": BACKBONE},
    "sit with batch norm": {"backbone": BACKBONE, "normalizes_latents": True},
    "dit": {"backbone": BACKBONE},
    "starflow": {"flow": FLOW},
    "simflow": {"flow": FLOW},
}
ENCODER = "autoencoder.encoder.weight"
REPA, REPA_E = {"alignment_autoencoder": 0.0}, {"alignment_autoencoder": 0.7}
every_model_but_simflow = pytest.mark.parametrize("name", [name for name in OPTIONS if name != "simflow"])
every_diffusion_model = pytest.mark.parametrize("name", ["sit", "sit with batch norm", "dit"])


def gradients(name: str, beta: float = 1.0, alignment: float = 0.5, **weights: float) -> dict[str, Tensor]:
    """Return the gradients of one micro-batch by parameter, of encoder (`autoencoder.`) and model (`model.`)."""
    torch.manual_seed(0)
    factory = MODELS.get(name.split()[0])
    context = ModelContext((3, 4, 4), 5, AlignmentContext(feature_dim=6, layer=1, projector_dim=8))
    model = factory(factory.Options.model_validate(OPTIONS[name]), context)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    no_reconstruction = ReconstructionLoss([("l2", 0.0, torch.nn.MSELoss())])
    objective_weights = ObjectiveWeights(beta=beta, alignment=alignment, **weights)
    joint = JointObjective(LinearAutoencoder(), model, no_reconstruction, objective_weights)
    images, features = torch.rand(4, 3, 4, 4) * 2 - 1, torch.randn(4, 4, 6)
    batch = JointInputs(images, torch.arange(4), features, BatchRandom(0, 0, 0, 4))
    loss = joint(batch)["loss"]
    assert loss is not None
    loss.backward()
    return {key: p.grad for key, p in joint.named_parameters() if p.grad is not None}


@every_diffusion_model
def test_denoising_never_moves_the_encoder(name: str) -> None:
    once, tenfold = (gradients(name, beta=beta, **REPA_E)[ENCODER] for beta in (1.0, 10.0))
    assert once.abs().sum() > 0
    torch.testing.assert_close(once, tenfold)


@every_diffusion_model
def test_encoder_and_model_weigh_the_alignment_apart(name: str) -> None:
    light, heavy = (gradients(name, alignment_autoencoder=weight) for weight in (0.7, 1.4))
    for key in light:
        factor = 2.0 if key.startswith("autoencoder.") else 1.0
        torch.testing.assert_close(factor * light[key], heavy[key])


@every_model_but_simflow
def test_repa_leaves_the_encoder_alone(name: str) -> None:
    assert gradients(name, **REPA)[ENCODER].abs().sum() == 0


def test_starflow_leaves_the_encoder_alone_whatever_the_weights() -> None:
    assert gradients("starflow", **REPA_E)[ENCODER].abs().sum() == 0


def test_simflows_likelihood_moves_the_encoder() -> None:
    once, thrice = (gradients("simflow", beta=beta, **REPA)[ENCODER] for beta in (1.0, 3.0))
    assert once.abs().sum() > 0
    torch.testing.assert_close(3 * once, thrice)


def test_repa_lets_no_alignment_of_simflow_through() -> None:
    light, heavy = (gradients("simflow", alignment=weight, **REPA) for weight in (0.5, 5.0))
    torch.testing.assert_close(light[ENCODER], heavy[ENCODER])
    moved = [key for key in light if not torch.allclose(light[key], heavy[key])]
    assert moved
    assert all(key.startswith("model.") for key in moved)


@pytest.mark.parametrize("weight", [0.5, 0.7], ids=["equal weights", "weights apart"])
def test_repa_e_adds_the_alignment_of_simflow_to_its_likelihood(weight: float) -> None:
    both, alignment, likelihood = (
        gradients("simflow", beta=beta, alignment_autoencoder=own)[ENCODER]
        for beta, own in ((1.0, weight), (0.0, weight), (1.0, 0.0))
    )
    assert alignment.abs().sum() > 0
    torch.testing.assert_close(both, alignment + likelihood)
