"""Parameters of a model, and floating-point operations per image of training and of sampling.

Counted by torch's formulas (matrix products, convolutions and attention; a multiply-add is 2 FLOPs) on a copy of
the modules without data (meta device), as one image goes through the joint objective. Reconstruction losses,
discriminator, frozen alignment encoder and optimiser are not in it: `forward_flops` measures any of those networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from simflow_plugin.contracts import Autoencoder, GenerativeModel
from simflow_plugin.errors import EvaluationError
from simflow_plugin.losses.pixel import L2Loss
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.objective import JointInputs, JointObjective, ObjectiveWeights
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.autoguidance import with_autoguidance
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import objective_weights

M = TypeVar("M", bound=nn.Module)

MOVES_ALL_ALIKE = ObjectiveWeights(alignment=1.0, alignment_autoencoder=1.0)


@dataclass(frozen=True)
class ComputeSetting:
    """Computation of one image.

    Args:
        image_size: pixels.
        has_labels: whether the model is given labels.
        guidance: weight w of the samples; > 0 costs a second half of the batch where it acts.
        feature_shape: (N, F) of the alignment features, or None without alignment.
        weights: of the objective, which decide what goes back through the model twice; the default moves model and
            autoencoder alike.
        caches_latents: whether what the encoder says of an image is read from disk.
    """

    image_size: int
    has_labels: bool = False
    guidance: float = 0.0
    feature_shape: tuple[int, int] | None = None
    weights: ObjectiveWeights = MOVES_ALL_ALIKE
    caches_latents: bool = False


@dataclass(frozen=True)
class ComputeCost:
    """Numbers to compare models at equal compute.

    Args:
        model_parameters: all of the generative model's, alignment projector included.
        autoencoder_parameters: all of the autoencoder's.
        trained_parameters: those of both that require a gradient.
        training_flops: per image, forward and backward, of encoder, model, and of the decoder if it trains.
        sampling_flops: per image, of the model's sampler and the decoder.
    """

    model_parameters: int
    autoencoder_parameters: int
    trained_parameters: int
    training_flops: int
    sampling_flops: int


def measure_compute(autoencoder: Autoencoder, model: GenerativeModel, setting: ComputeSetting) -> ComputeCost:
    """Count the parameters and FLOPs of a model with its autoencoder.

    Neither module is changed or run: the count is on copies without data, so that it needs no memory.

    Args:
        autoencoder: its `trainable` decides what counts as trained.
    """
    return ComputeCost(
        model_parameters=count_parameters(model),
        autoencoder_parameters=count_parameters(autoencoder),
        trained_parameters=count_parameters(model, only_trained=True)
        + count_parameters(autoencoder, only_trained=True),
        training_flops=training_flops(autoencoder, model, setting),
        sampling_flops=sampling_flops(autoencoder, model, setting),
    )


def measure_run(loaded: LoadedRun, guidance: float, sampled: GenerativeModel | None = None) -> ComputeCost:
    """Count the parameters and FLOPs of a run's parts, as they were trained.

    Args:
        loaded: with a model.
        guidance: weight w of the samples.
        sampled: the run's model as it is sampled with, by a guide perhaps; None: as the configuration says.
    Raises:
        EvaluationError: for a sampler whose work depends on the values it computes.
        ConfigError, CheckpointError: if there is no such guide as the configuration names.
    """
    config, feature_dim = loaded.config, loaded.checkpoint.state["feature_dim"]
    setting = ComputeSetting(
        config.image_size,
        loaded.num_classes is not None,
        guidance,
        None if feature_dim is None else (1, feature_dim),  # a mean over patches, which adds no product
        objective_weights(config),
        config.training.cache_latents,
    )
    # A loaded run is frozen; what it trained is up to its autoencoder's `trainable`.
    autoencoder = without_data(loaded.autoencoder).requires_grad_(True)
    if sampled is None:
        sampled = (with_autoguidance(loaded) if guidance > 0 else loaded).require_model()
    model = without_data(sampled).requires_grad_(config.frozen_model is None)
    return measure_compute(autoencoder, model, setting)


def count_parameters(module: nn.Module, only_trained: bool = False) -> int:
    """Return the number of parameters, or of those that require a gradient."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not only_trained)


def training_flops(autoencoder: Autoencoder, model: GenerativeModel | None, setting: ComputeSetting) -> int:
    """Return the FLOPs of one image's forward and backward pass; a model of None, or a frozen one, takes no part."""
    pixels = ReconstructionLoss([("l2", 1.0, L2Loss(L2Loss.Options()))])
    joint = JointObjective(
        without_data(autoencoder),
        None if model is None else without_data(model),
        pixels,
        setting.weights,
        trains_model=model is None or all(p.requires_grad for p in model.parameters()),
    )
    images, moments = torch.zeros(1, 3, setting.image_size, setting.image_size, device="meta"), None
    shape = setting.feature_shape
    features = None if shape is None else torch.zeros(1, *shape, device="meta")
    if setting.caches_latents:
        with torch.no_grad():
            moments = joint.autoencoder.moments(images)
    random = IndexedRandom(0, (0,))
    inputs = JointInputs(images, _labels(setting), features, random, moments=moments)

    def step() -> None:
        loss = joint(inputs)["loss"]
        assert loss is not None
        loss.backward()

    return count_flops(step)


def sampling_flops(autoencoder: Autoencoder, model: GenerativeModel, setting: ComputeSetting) -> int:
    """Return the FLOPs of one sample, its decoding included.

    Raises:
        EvaluationError: for a sampler whose work depends on the values it computes (Jacobi iteration).
    """
    autoencoder, model = without_data(autoencoder).eval(), without_data(model).eval()
    shape = (1, *autoencoder.latent_shape(setting.image_size))

    def step() -> None:
        with torch.no_grad():
            latents = model.sample(_labels(setting), shape, setting.guidance, IndexedRandom(0, (0,)))
            autoencoder.decode(latents)

    try:
        return count_flops(step)
    except RuntimeError as error:
        if "meta tensor" not in str(error):
            raise
        raise EvaluationError(
            f"{type(model).__name__}: the work of its sampler depends on values it computes ({error}), so "
            "it has no fixed number of FLOPs. Count it with model.sampling.method: cached."
        ) from error


def forward_flops(network: nn.Module, image_size: int) -> int:
    """Return the FLOPs of a network's forward pass over one image (1, 3, H, W); of a frozen encoder, say."""
    network = without_data(network)
    images = torch.zeros(1, 3, image_size, image_size, device="meta")
    with torch.no_grad():
        return count_flops(lambda: network(images))


def count_flops(function: Callable[[], Any]) -> int:
    """Return the FLOPs that torch's formulas give for what runs in `function`."""
    with _FlopCounter() as counter:
        function()
    return counter.total


class _FlopCounter(TorchDispatchMode):
    """Torch's formulas without its counter, which follows modules by hooks that forbid gradients within a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            # In inference mode compound operations (linear) arrive whole, and their parts have the formulas.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def without_data(module: M) -> M:
    """Return a copy of `module` on the meta device, made without copying its tensors."""
    memo: dict[int, Any] = {}
    guide = getattr(module, "guide", None)  # of autoguidance: no submodule
    parts: list[nn.Module] = [module, *([guide] if isinstance(guide, nn.Module) else [])]
    for parameter in (parameter for part in parts for parameter in part.parameters()):
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in (buffer for part in parts for buffer in part.buffers()):
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


def _labels(setting: ComputeSetting) -> Tensor | None:
    return torch.zeros(1, dtype=torch.int64, device="meta") if setting.has_labels else None
