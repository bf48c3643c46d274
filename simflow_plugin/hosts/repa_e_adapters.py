"""Adapters for End2End-Diffusion/REPA-E at 3ad8046: our flows and autoencoders behind the host's interface.

The host's loop calls the model twice for each batch. First with its parameters frozen, in evaluation mode and with
the latents attached (`align_only`): what `proj_loss` carries reaches the encoder, scaled by
`--vae-align-proj-coeff` c, so it is alignment + NLL / c. Then in training mode with the latents detached:
`denoising_loss` is the NLL, and `proj_loss` the alignment alone. `simflow patch repa-e` inserts the look-ups.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.fixed_variance import FixedVarianceFactory
from simflow_plugin.hosts.hosted_flow import FlowKind, HostArguments, HostedFlow, flow_kinds, sample

LEARNED_VARIANCE = {"f8d4": (4, 8), "f16d32": (32, 16)}
"""The host's own autoencoders: (latent channels, factor)."""

F16D64 = (64, 16)
F16D64_WIDTHS = [1, 1, 2, 2, 4]
"""SimFlow's autoencoder; the widths, in units of 128, are those of the host's f16d32 (inferred from its name)."""

BATCH_NORM_EPS = 1e-6
"""The host has 1e-4, but undoes the normalisation without it; smaller, samples come back closer to the latents."""


class RepaEFlow(HostedFlow):
    """SimFlow or STARFlow as a model of REPA-E.

    Args:
        kind: family, size and patch.
        nll_weight: beta, the weight of the NLL (nats per latent dimension) in the loss of the autoencoder.
        bn_momentum: of the running statistics; `generate.py` may pass None.
        arguments: the host's other keywords, see `HostArguments`.
    Raises:
        HostError: if kind and arguments do not fit each other.
    """

    def __init__(
        self, kind: FlowKind, *, nll_weight: float = 1.0, bn_momentum: float | None = 0.1, **arguments: Any
    ) -> None:
        super().__init__(kind, HostArguments(**arguments))
        self.nll_weight = nll_weight
        self.alignment_coefficient: float | None = None
        self.bn = nn.BatchNorm2d(self.in_channels, eps=BATCH_NORM_EPS, momentum=bn_momentum, affine=False)

    def use_host_options(self, args: Any) -> None:
        """Read the options of a run that the host does not pass on; the patched scripts call this once.

        Args:
            args: the parsed arguments of `train_repae.py` or `train_ldm_only.py`.
        Raises:
            HostError: for options that would not train this model.
        """
        coefficient = getattr(args, "vae_align_proj_coeff", None)
        if coefficient is None:
            return  # train_ldm_only.py: the autoencoder is frozen, there is nothing to undo
        if not self.moves_encoder:
            if args.vae_learning_rate != 0:
                raise HostError(
                    f"{self.kind.name} is trained on a frozen autoencoder: use train_ldm_only.py, or "
                    f"--vae-learning-rate 0 (found {args.vae_learning_rate}), or a SimFlow model"
                )
            return
        if coefficient <= 0:
            raise HostError(
                f"--vae-align-proj-coeff {coefficient}: the host scales by it what reaches the encoder, so the "
                f"likelihood of {self.kind.name} would be lost; for almost no alignment use 1e-6"
            )
        self.alignment_coefficient = float(coefficient)
        if args.vae in LEARNED_VARIANCE:
            warnings.warn(
                f"--model {self.kind.name} --vae {args.vae}: this autoencoder learns its posterior's variance, which "
                "the likelihood of the flow pulls towards zero, held only by the loss's small KL term. That is an "
                f"ablation, not SimFlow; for a fixed variance choose --vae {args.vae}-fixedvar.",
                stacklevel=2,
            )

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        zs: Sequence[Tensor],
        loss_kwargs: dict[str, Any],
        time_input: Tensor | None = None,
        noises: Tensor | None = None,
    ) -> dict[str, Any]:
        """Compute the losses of one of the loop's two calls.

        Args:
            x: (N, C, h, w), raw latents.
            y: (N,) int64.
            zs: (N, L, F) of each encoder.
            loss_kwargs: of these, `align_only` is read: whether this is the call for the autoencoder.
            time_input: (N, 1, 1, 1), in [0, 1), decides the label dropout; drawn if None.
            noises: (N, C, h, w), standard normal, STARFlow's noise; drawn if None.
        Returns:
            The host's keys. `denoising_loss` is (N,), nats per latent dimension, or None with `align_only`;
            `proj_loss` a scalar; `time_input` and `noises` may be passed back.
        Raises:
            HostError: if the host was not patched.
        """
        latents = self.bn(x)
        if time_input is None:
            time_input = torch.rand((len(latents), 1, 1, 1))
        time_input = time_input.to(device=latents.device, dtype=latents.dtype)
        noises = torch.randn_like(latents) if noises is None else noises.to(latents)
        result: dict[str, Any] = {
            "time_input": time_input,
            "noises": noises,
            "zs_tilde": [],
            "model_output": None,
            "denoising_loss": None,
            "proj_loss": x.new_zeros(()),
        }
        align_only = loss_kwargs["align_only"]
        if align_only and not self.moves_encoder:
            return result  # a frozen autoencoder: nothing may reach it, and the pass is saved
        losses = self.losses(latents, y, zs, time_input.flatten(), noises)
        result |= {"zs_tilde": losses.projected, "model_output": losses.noise}
        if align_only:
            return result | {"proj_loss": losses.alignment + self._nll_for_encoder(losses.nll)}
        return result | {"denoising_loss": losses.nll, "proj_loss": losses.alignment}

    def _nll_for_encoder(self, nll: Tensor) -> Tensor:
        if self.alignment_coefficient is None:
            raise HostError(
                f"{self.kind.name} does not know --vae-align-proj-coeff: train_repae.py lacks the line that passes it. "
                "Run `simflow patch repa-e PATH`, or call `model.use_host_options(args)` after building the model"
            )
        return self.nll_weight * nll.mean() / self.alignment_coefficient

    def init_bn(self, latents_scale: Tensor, latents_bias: Tensor) -> None:
        """Start the running statistics from 1 / std and mean, (C,) each."""
        self.bn.running_mean = latents_bias.to(self.bn.running_mean, copy=True)
        self.bn.running_var = latents_scale.to(self.bn.running_var).pow(-2)

    def extract_latents_stats(self) -> dict[str, Tensor]:
        """Return `latents_scale` (1 / std) and `latents_bias` (mean), (C,) each."""
        statistics = dict(self.bn.named_buffers())
        return {
            "latents_scale": statistics["running_var"].rsqrt(),
            "latents_bias": statistics["running_mean"],
        }

    def inference(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """A flow has no velocity; the host's samplers hand over to `sample` instead.

        Raises:
            HostError: always.
        """
        raise HostError(
            f"{self.kind.name} has no velocity for the host's samplers; samplers.py lacks the lines that hand over. "
            "Run `simflow patch repa-e PATH`"
        )


def add_models(models: dict[str, Callable[..., nn.Module]]) -> None:
    """Add `SimFlow-B/1` and the others to the host's dictionary (entry point in `repa_e.models`)."""
    for kind in flow_kinds():
        models.setdefault(kind.name, partial(RepaEFlow, kind))


def add_autoencoders(autoencoders: dict[str, Callable[..., nn.Module]]) -> None:
    """Add `f8d4-fixedvar`, `f16d32-fixedvar` and `f16d64-fixedvar` to the host's dictionary (`repa_e.autoencoders`)."""
    for name, (latent_channels, factor) in LEARNED_VARIANCE.items():
        if name in autoencoders:
            autoencoders.setdefault(
                f"{name}-fixedvar", FixedVarianceFactory(autoencoders[name], latent_channels, factor)
            )
    if "f16d32" in autoencoders:
        channels, factor = F16D64
        build_f16d64 = partial(_build_f16d64, autoencoders["f16d32"], channels)
        autoencoders.setdefault("f16d64-fixedvar", FixedVarianceFactory(build_f16d64, channels, factor))


def _build_f16d64(sibling: Callable[..., nn.Module], channels: int, **options: Any) -> nn.Module:
    """Build the host's autoencoder as its f16d32 is built, with `channels` latent ones and no log-variance.

    Raises:
        HostError: if the module of that factory has no such class.
    """
    network = getattr(sys.modules.get(sibling.__module__), "AutoencoderKL", None)
    if network is None:
        raise HostError(
            f"f16d64-fixedvar: found no class AutoencoderKL beside the host's f16d32 ({sibling.__module__}); expected "
            "models/autoencoder.py of the pinned commit"
        )
    return network(embed_dim=channels, ch_mult=F16D64_WIDTHS, use_variational=False, **options)


def add_samplers(samplers: dict[type, Callable[..., Tensor]]) -> None:
    """Add our sampler to the patched host's dictionary, model class -> sampler (`repa_e.samplers`)."""
    samplers.setdefault(RepaEFlow, sample)
