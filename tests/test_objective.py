"""The joint objective: which gradient reaches what, how often each part runs, and that it is the negative ELBO."""

import math

import pytest
import torch

from simflow_plugin.losses.pixel import L2Loss
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.objective import JointInputs, JointObjective, ObjectiveWeights, latent_statistics
from simflow_plugin.posteriors.gaussian import FixedVariancePosterior, LearnedVariancePosterior
from simflow_plugin.randomness import BatchRandom
from tests.training.toys import AlignmentCoupledModel, CoupledModel, DetachedModel, LinearAutoencoder


def inputs(with_features=False, batch=4):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, 4, 4, generator=generator) * 2 - 1
    features = torch.randn(batch, 3, 4, 4, generator=generator) if with_features else None
    return JointInputs(images, None, features, BatchRandom(0, 0, 0, batch))


def objective(model, trainable="full", reconstruction_weight=0.0, **weights):
    torch.manual_seed(0)
    terms = [("l2", reconstruction_weight, L2Loss(L2Loss.Options()))] if reconstruction_weight else []
    autoencoder = LinearAutoencoder(trainable)
    return JointObjective(
        autoencoder,
        model,
        ReconstructionLoss(terms or [("l2", 0.0, L2Loss(L2Loss.Options()))]),
        ObjectiveWeights(**weights),
    )


def encoder_gradient(joint, data):
    joint(data)["loss"].backward()
    return joint.autoencoder.encoder.weight.grad


def test_nll_gradient_reaches_the_encoder():
    assert encoder_gradient(objective(CoupledModel()), inputs()).abs().max() > 0


@pytest.mark.parametrize(
    ("model", "trainable", "weights"),
    [
        (CoupledModel, "none", {}),
        (CoupledModel, "decoder", {}),
        (DetachedModel, "full", {}),
        (AlignmentCoupledModel, "full", {"alignment": 0.5, "alignment_autoencoder": 0.0}),
    ],
    ids=["frozen", "decoder only", "detached model", "repa"],
)
def test_encoder_is_left_alone_while_the_model_learns(model, trainable, weights):
    joint = objective(model(), trainable, **weights)
    gradient = encoder_gradient(joint, inputs(with_features=bool(weights)))
    assert gradient is None or gradient.abs().max() == 0
    assert joint.model.scale.grad.abs() > 0


def test_repa_e_sends_the_alignment_gradient_alone():
    """With weight w for the autoencoder its gradient is w dL_align/dz, whatever the model's own term is."""
    data = inputs(with_features=True)
    gradient = encoder_gradient(
        objective(AlignmentCoupledModel(), alignment=0.5, alignment_autoencoder=1.5), data
    )
    reference = objective(AlignmentCoupledModel())
    latents = reference.autoencoder.encode(data.images).sample(
        noise=data.random.normal("posterior", (4, 3, 4, 4))
    )
    (1.5 * (2.0 * latents * data.features).mean()).backward()
    torch.testing.assert_close(gradient, reference.autoencoder.encoder.weight.grad)


def test_model_sees_its_own_alignment_weight():
    data = inputs(with_features=True)
    separate = objective(CoupledModel(), alignment=0.5, alignment_autoencoder=2.0)
    equal = objective(CoupledModel(), alignment=0.5, alignment_autoencoder=0.5)
    for joint in (separate, equal):
        joint(data)["loss"].backward()
    torch.testing.assert_close(separate.model.scale.grad, equal.model.scale.grad)


def test_routed_and_plain_paths_agree_where_both_apply():
    """Almost equal weights take the routed path, equal ones the plain path: one objective, one gradient."""
    data = inputs(with_features=True)
    plain = encoder_gradient(objective(CoupledModel(), alignment=0.5, alignment_autoencoder=0.5), data)
    routed = encoder_gradient(
        objective(CoupledModel(), alignment=0.5, alignment_autoencoder=0.5 + 1e-9), data
    )
    torch.testing.assert_close(routed, plain)


@pytest.mark.parametrize("model", [CoupledModel, AlignmentCoupledModel, DetachedModel])
@pytest.mark.parametrize("trainable", ["full", "none"])
def test_each_part_runs_once_a_step_and_the_decoder_of_a_frozen_autoencoder_never(model, trainable):
    joint = objective(model(), trainable, alignment=0.5, alignment_autoencoder=1.5)
    joint(inputs(with_features=True))["loss"].backward()
    assert joint.autoencoder.calls == {"encode": 1, "decode": int(trainable == "full")}
    assert joint.model.calls == 1


def test_loss_is_the_negative_elbo_of_a_linear_gaussian_toy():
    """p(z) = N(0, 1/a^2), p(x|z) = N(Dz, s^2): weighed so, the loss is -ELBO / dims + a constant."""
    joint = objective(CoupledModel(), reconstruction_weight=1.0)
    data, noise_std, scale = inputs(), 0.3, 2.0
    dims = data.images[0].numel()
    joint.reconstruction = ReconstructionLoss([("l2", 1 / (2 * noise_std**2), L2Loss(L2Loss.Options()))])
    loss = joint(data)["loss"]
    autoencoder = joint.autoencoder
    posterior = autoencoder.encode(data.images)
    latents = posterior.sample(noise=data.random.normal("posterior", (4, 3, 4, 4)))
    normal = torch.distributions.Normal
    log_likelihood = normal(autoencoder.decode(latents), noise_std).log_prob(data.images).sum(dim=(1, 2, 3))
    log_prior = normal(0.0, 1 / scale).log_prob(latents).sum(dim=(1, 2, 3))
    elbo = (log_likelihood + log_prior + posterior.entropy()).mean()
    constant = (
        0.5 * math.log(2 * math.pi) + math.log(noise_std)  # of p(x|z)
        + 0.5 * math.log(2 * math.pi) - math.log(scale)  # of p(z), which the toy's term leaves out
        - posterior.entropy().mean() / dims
    )  # fmt: skip
    torch.testing.assert_close(loss + constant, -elbo / dims)


def test_dead_channels_are_counted():
    joint = objective(CoupledModel())
    with torch.no_grad():
        joint.autoencoder.encoder.weight[0] = 0.0
    assert joint(inputs())["latent_dead"] == pytest.approx(1 / 3)


def test_signal_to_noise_is_the_spread_over_the_posteriors_std_averaged_over_channels():
    mean = torch.zeros(4, 2, 1, 1)
    mean[:2, 0], mean[:2, 1] = 2.0, 6.0  # two values: the spread is half their distance
    std = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    assert latent_statistics(FixedVariancePosterior(mean, std))["signal_to_noise"] == pytest.approx(
        (1 / 0.5 + 3 / 2) / 2
    )


@pytest.mark.parametrize(("noise_std", "floor"), [(0.0, 0.7258), (0.3, 0.8795)])
def test_floor_of_the_nll_is_the_entropy_of_the_fixed_noise_per_dimension(noise_std, floor):
    posterior = FixedVariancePosterior(torch.randn(2, 3, 4, 4), torch.tensor(0.5))
    found = latent_statistics(posterior, noise_std)["nll_floor"]
    assert found == pytest.approx(floor, abs=1e-4)
    if noise_std == 0:
        assert found == pytest.approx(float(posterior.entropy()[0]) / 48)


def test_learned_variance_has_no_floor():
    posterior = LearnedVariancePosterior(torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    assert "nll_floor" not in latent_statistics(posterior)


class ForeignPosterior:
    """What a plugin may return: it keeps the contract and shares no class with ours."""

    def __init__(self, mean, learns_variance):
        self._gaussian = LearnedVariancePosterior(mean, torch.zeros_like(mean))
        self.learns_variance = learns_variance

    def __getattr__(self, name):
        return getattr(self._gaussian, name)


@pytest.mark.parametrize(("model", "term"), [(CoupledModel, "negative_entropy"), (DetachedModel, "kl")])
@pytest.mark.parametrize("learns_variance", [False, True])
def test_any_posterior_that_learns_its_variance_is_kept_from_collapsing(model, term, learns_variance):
    joint = objective(model())
    encoder = joint.autoencoder.encoder
    joint.autoencoder.encode = lambda images: ForeignPosterior(encoder(images), learns_variance)
    assert (term in joint(inputs())) == learns_variance
