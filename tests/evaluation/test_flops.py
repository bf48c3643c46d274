"""Compute of models: counts against hand-derived numbers and against the published ones."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from simflow_plugin.bench.flow_flops import forward_flops as least_flops
from simflow_plugin.contracts import AlignmentContext, Autoencoder, GenerativeModel, ModelContext
from simflow_plugin.diffusion.transformer import AdaLNTransformer, BackboneOptions
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.flops import (
    ComputeSetting,
    count_flops,
    count_parameters,
    forward_flops,
    measure_compute,
    sampling_flops,
    training_flops,
    without_data,
)
from simflow_plugin.objective import ObjectiveWeights
from simflow_plugin.options import Options
from simflow_plugin.registry import MODELS

IMAGE_SIZE, CHANNELS = 8, 2
GRID = IMAGE_SIZE // 2
CODEC_FLOPS = 2 * GRID * GRID * CHANNELS * 3 * 4
"""Forward pass of encoder or decoder: a 2 x 2 convolution of stride 2 between 3 and CHANNELS channels."""


class ToyAutoencoder(Autoencoder):
    """One convolution each way."""

    Options: ClassVar[type[Options]] = Options
    factor, latent_channels = 2, CHANNELS

    def __init__(self, trainable: str) -> None:
        super().__init__()
        self.trainable = trainable
        self.encoder = nn.Conv2d(3, CHANNELS, 2, stride=2).requires_grad_(trainable == "full")
        self.decoder = nn.ConvTranspose2d(CHANNELS, 3, 2, stride=2).requires_grad_(trainable != "none")

    def encode(self, images: Tensor) -> Any:
        mean = self.encoder(images)
        return SimpleNamespace(
            mean=mean,
            std=torch.ones_like(mean),
            learns_variance=False,
            sample=lambda generator=None, noise=None: mean + noise,
        )

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def last_layer(self) -> Any:
        return self.decoder.weight


class MatrixModel(GenerativeModel):
    """One linear map of the flattened latents: forward 2 n^2 FLOPs, one more for each gradient."""

    Options: ClassVar[type[Options]] = Options

    def __init__(self, coupled: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.coupled_terms = coupled  # type: ignore[misc]
        self.linear = nn.Linear(CHANNELS * GRID * GRID, CHANNELS * GRID * GRID)

    def training_losses(self, latents: Tensor, labels: Any, features: Any, random: Any) -> dict[str, Tensor]:
        return {"nll": self.linear(latents.flatten(1)).square().mean()}

    def sample(self, labels: Any, shape: Any, guidance: float, random: Any) -> Tensor:
        return self.linear(random.normal("latent", shape, self.linear.weight.device).flatten(1)).view(shape)


SETTING = ComputeSetting(IMAGE_SIZE)
FLOW = {"width": 16, "head_dim": 8, "layers_per_block": [1, 1]}
BACKBONE = {"width": 16, "depth": 1, "num_heads": 2}
ALIGNMENT = AlignmentContext(feature_dim=6, layer=1, projector_dim=8)
MATRIX_FLOPS = 2 * (CHANNELS * GRID * GRID) ** 2


def build(name: str, options: dict[str, Any], alignment: AlignmentContext | None = None) -> GenerativeModel:
    factory = MODELS.get(name)
    context = ModelContext((CHANNELS, GRID, GRID), 3, alignment)
    model: GenerativeModel = factory(factory.Options.model_validate(options), context)
    return model


def build_sit(**sampling: Any) -> GenerativeModel:
    return build("sit", {"backbone": BACKBONE, "normalizes_latents": True, "sampling": sampling})


@pytest.mark.parametrize(
    ("trainable", "coupled", "expected"),
    [
        ("none", False, CODEC_FLOPS + 2 * MATRIX_FLOPS),
        ("decoder", False, CODEC_FLOPS + 2 * CODEC_FLOPS + 2 * MATRIX_FLOPS),
        ("full", False, 2 * CODEC_FLOPS + 3 * CODEC_FLOPS + 2 * MATRIX_FLOPS),
        ("full", True, 2 * CODEC_FLOPS + 3 * CODEC_FLOPS + 3 * MATRIX_FLOPS),
    ],
)
def test_training_flops_of_a_toy_are_those_of_its_matrix_products(
    trainable: str, coupled: bool, expected: int
) -> None:
    model = MatrixModel(frozenset({"nll"}) if coupled else frozenset())
    assert training_flops(ToyAutoencoder(trainable), model, SETTING) == expected


def test_training_flops_of_an_autoencoder_alone_are_three_passes_each_way() -> None:
    counted = training_flops(ToyAutoencoder("full"), None, SETTING)
    assert counted == 2 * CODEC_FLOPS + 3 * CODEC_FLOPS  # images need no gradient


def test_terms_that_move_the_encoder_otherwise_than_the_model_cost_a_second_pass_back() -> None:
    """As in the joint objective: with equal weights one backward pass, else the gradient at the latents beforehand."""
    model = build("simflow", {"flow": FLOW}, ALIGNMENT)
    equal, unequal, model_only = (
        training_flops(
            ToyAutoencoder("full"),
            model,
            ComputeSetting(
                IMAGE_SIZE, True, 0.0, (4, 6), ObjectiveWeights(alignment=0.5, alignment_autoencoder=w)
            ),
        )
        for w in (0.5, 1.5, 0.0)
    )
    assert unequal > model_only > equal


def test_sampling_flops_of_a_toy_are_model_and_decoder() -> None:
    counted = sampling_flops(ToyAutoencoder("none"), MatrixModel(), SETTING)
    assert counted == MATRIX_FLOPS + CODEC_FLOPS


@pytest.mark.parametrize(("size", "gflops"), [("S", 6.06), ("B", 23.01), ("L", 80.71), ("XL", 118.64)])
def test_forward_flops_are_the_published_ones(size: str, gflops: float) -> None:
    # DiT, arXiv:2212.09748, table 1, at patch 2 and 256 x 256; published multiply-adds are two FLOPs here.
    with torch.device("meta"):
        network = AdaLNTransformer(BackboneOptions.model_validate({"size": size}), (4, 32, 32), 1000)
        latents, t, labels = torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        counted = count_flops(lambda: network(latents, t, labels))
    assert abs(counted / 2e9 / gflops - 1) < 0.01


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_cached_sampling_of_a_flow_costs_one_forward_pass(guidance: float) -> None:
    """By the closed form of `bench`: every token goes once through every block, guided ones twice.

    Flows are sampled in inference mode, where torch hands over linear maps whole instead of their products.
    """
    model = build("simflow", {"flow": {"width": 16, "head_dim": 8, "layers_per_block": [1, 2]}})
    setting = ComputeSetting(IMAGE_SIZE, has_labels=True, guidance=guidance)
    counted = sampling_flops(ToyAutoencoder("none"), model, setting) - CODEC_FLOPS
    assert counted == least_flops(model.flow.config, prefix_length=1, guided=guidance > 0)


@pytest.mark.parametrize(
    ("sampling", "guidance", "passes"),
    [
        ({"num_steps": 10}, 0.0, 10),
        ({"method": "heun"}, 0.0, 7),  # two a step but for the last one
        ({}, 1.0, 8),
        ({"guidance_rule": {"name": "classifier_free", "interval": (0.6, 1.0)}}, 1.0, 6),
    ],
)
def test_sampling_of_a_diffusion_model_costs_its_passes(
    sampling: dict[str, Any], guidance: float, passes: int
) -> None:
    plain, counted = (
        sampling_flops(
            ToyAutoencoder("none"),
            build_sit(**{"method": "euler", "num_steps": 4, **options}),
            ComputeSetting(IMAGE_SIZE, has_labels=True, guidance=weight),
        )
        - CODEC_FLOPS
        for options, weight in (({}, 0.0), (sampling, guidance))
    )
    assert 4 * counted == passes * plain


def test_alignment_costs_more() -> None:
    options = {"backbone": BACKBONE, "sampling": {"num_steps": 2}}
    plain, aligned = build("sit", options), build("sit", options, ALIGNMENT)
    costs = [
        measure_compute(ToyAutoencoder("full"), model, ComputeSetting(IMAGE_SIZE, feature_shape=shape))
        for model, shape in ((plain, None), (aligned, (4, 6)))
    ]
    assert costs[1].training_flops > costs[0].training_flops
    assert costs[1].sampling_flops == costs[0].sampling_flops
    assert costs[1].model_parameters == costs[0].model_parameters + (16 * 8 + 8) + (8 * 8 + 8) + (8 * 6 + 6)


@pytest.mark.parametrize("name", ["simflow", "starflow", "sit", "dit"])
def test_every_model_of_the_harness_can_be_counted(name: str) -> None:
    diffusion = {"backbone": BACKBONE, "sampling": {"num_steps": 3}}
    options = {"flow": FLOW} if name.endswith("flow") else diffusion
    setting = ComputeSetting(IMAGE_SIZE, has_labels=True, guidance=1.0)
    cost = measure_compute(ToyAutoencoder("none"), build(name, options), setting)
    assert cost.training_flops > cost.sampling_flops / 100 > 0
    assert cost.trained_parameters == cost.model_parameters


def test_counting_changes_nothing() -> None:
    model = build_sit(num_steps=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_compute(ToyAutoencoder("full"), model, SETTING)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_copy_without_data_keeps_shapes_and_gradients() -> None:
    autoencoder = ToyAutoencoder("decoder")
    copied = without_data(autoencoder)
    assert all(parameter.is_meta for parameter in copied.parameters())
    assert count_parameters(copied, only_trained=True) == count_parameters(autoencoder.decoder)
    assert not any(parameter.is_meta for parameter in autoencoder.parameters())


def test_forward_flops_of_any_network() -> None:
    assert forward_flops(ToyAutoencoder("none").encoder, IMAGE_SIZE) == CODEC_FLOPS


def test_sampler_whose_work_depends_on_values_is_refused() -> None:
    model = build("simflow", {"flow": FLOW, "sampling": {"method": "jacobi"}})
    with pytest.raises(EvaluationError, match="SimFlow: the work of its sampler depends on values"):
        sampling_flops(ToyAutoencoder("none"), model, SETTING)
