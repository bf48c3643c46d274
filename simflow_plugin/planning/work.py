"""The work of one image, counted on the meta device: FLOPs of a step, and bytes kept for its backward pass."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simflow_plugin.evaluation.flops import count_flops, forward_flops
from simflow_plugin.objective import JointInputs, layer_class_names
from simflow_plugin.planning.on_cuda import FusedAttention, MixedPrecision
from simflow_plugin.planning.outline import Outline, zeros
from simflow_plugin.randomness import IndexedRandom

PERCEPTUAL_PASSES = 3
"""Forward for image and reconstruction, and backward to the reconstruction, which costs about one forward."""
DISCRIMINATOR_PASSES = 8
"""Generator's side: forward and backward to the images; its own: two forwards, each with a backward of twice that."""


def _inputs(outline: Outline, num_images: int = 1) -> JointInputs:
    size = outline.config.image_size
    labels = zeros((num_images,), torch.int64) if outline.num_classes is not None else None
    features = zeros((num_images, *outline.feature_shape)) if outline.feature_shape is not None else None
    images = zeros((num_images, 3, size, size))
    moments = None
    if outline.config.training.cache_latents:
        with torch.no_grad():
            moments = outline.joint.autoencoder.moments(images)
    return JointInputs(images, labels, features, IndexedRandom(0, (0,) * num_images), moments=moments)


def _forward_and_backward(outline: Outline, inputs: JointInputs) -> None:
    loss = outline.joint(inputs)["loss"]
    assert loss is not None
    loss.backward()


def flops_per_image(outline: Outline) -> dict[str, int]:
    """Return FLOPs of one image's step, forward and backward, by part of the work."""
    step = partial(_forward_and_backward, outline, _inputs(outline))
    flops = {"autoencoder and model, forward and backward": count_flops(step)}
    if outline.encoder is not None:
        flops["frozen encoder"] = forward_flops(outline.encoder.network, outline.encoder.image_size)
    moves_autoencoder = outline.joint.autoencoder.trainable != "none"
    if outline.perceptual and moves_autoencoder:
        forward = sum(forward_flops(loss.network, loss.image_size) for loss in outline.perceptual)
        flops["perceptual loss"] = PERCEPTUAL_PASSES * forward
    if outline.discriminator is not None and moves_autoencoder:
        forward = forward_flops(outline.discriminator, outline.config.image_size)
        flops["adversarial loss"] = DISCRIMINATOR_PASSES * forward
    return flops


def launches_per_pass(outline: Outline) -> int:
    """Return the kernels that forward and backward of one micro-batch launch, however many images it has.

    Operations that torch dispatches, views left out; casts of mixed precision, the losses' own networks and the
    optimizer's few fused kernels are not counted.
    """
    inputs = _inputs(outline)
    with _LaunchCounter() as counter:
        _forward_and_backward(outline, inputs)
    return counter.total


class _LaunchCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returned)
        self.total += not is_view
        return func(*args, **(kwargs or {}))


def saved_bytes(outline: Outline, num_images: int) -> float:
    """Return the bytes that a forward pass keeps for the backward pass, parameters left out.

    Linear in the images: what one and two keep gives the rest, casts of the weights included, which are kept once.
    """
    one, two = (_saved_bytes(outline, count) for count in (1, 2))
    return one + (num_images - 1) * (two - one)


def _saved_bytes(outline: Outline, num_images: int) -> float:
    joint, precision = outline.joint, outline.config.training.precision
    is_whole = precision == "float32"
    lower = torch.float16 if precision == "float16" else torch.bfloat16
    ours = {tensor.untyped_storage()._cdata for tensor in [*joint.parameters(), *joint.buffers()]}
    kept: dict[int, Tensor] = {}  # holds the tensors too, so that no identity is given twice

    def keep(tensor: Tensor) -> Tensor:
        identity = tensor.untyped_storage()._cdata
        if identity not in ours:
            kept.setdefault(identity, tensor)
        return tensor

    def keep_input(module: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled() and isinstance(arguments[0], Tensor):
            keep(arguments[0])  # all that activation checkpointing keeps of a layer

    names = layer_class_names(joint.model) if joint.model is not None else []
    handles = [m.register_forward_pre_hook(keep_input) for m in joint.modules() if type(m).__name__ in names]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with FusedAttention(), nullcontext() if is_whole else MixedPrecision(lower):
            output = joint(_inputs(outline, num_images))
        for loss in outline.perceptual if output["reconstruction"] is not None else ():
            loss.network.requires_grad_(False)(output["reconstruction"].float())  # in float32 by design
    for handle in handles:
        handle.remove()
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
