"""The joint objective: one forward of encoder, model and decoder, one loss, gradients sent where they belong.

L = sum_r w_r L_r(decode(z), x) + beta * sum_t L_t(z) + w_a L_align(z) (+ KL or entropy) (+ adversarial), z ~ q(z|x).

A model declares which of its terms may move the autoencoder (`coupled_terms`); the others see the latents detached.
Where both kinds meet, or where the alignment weighs differently for model and autoencoder (REPA-E), the model runs
once on a leaf copy of z, and the gradient of the coupled terms at that leaf is handed to z by the linear surrogate
<z, dL/dz>, whose gradient at z is that very vector. So the model still runs forward once and DDP sees one backward;
the price is a second pass back through the model for dL/dz. A model whose coupled terms come from a pass of their own
(REPA-E: the network in evaluation mode) gives them by `autoencoder_losses`; then the model runs forward twice.

Reference: SimFlow, arXiv:2512.04084; REPA-E, arXiv:2504.10483, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from simflow_plugin.contracts import Autoencoder, GenerativeModel, Posterior
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.randomness import Random

if TYPE_CHECKING:
    from simflow_plugin.losses.adversarial import AdversarialLoss

DEAD_CHANNEL_RATIO = 0.1
"""A latent channel is dead when its mean varies over the data by less than this share of the posterior's std."""


@dataclass(frozen=True)
class ObjectiveWeights:
    """Weights of the joint objective.

    Args:
        beta: of the model's own terms.
        kl: of KL(q || N(0, I)) in nats per image; used with a learnable-variance posterior whose latents the model's
            likelihood does not reach.
        alignment: of the alignment term for the model's parameters.
        alignment_autoencoder: of the same term for the autoencoder's; 0 is REPA, more is REPA-E.
    """

    beta: float = 1.0
    kl: float = 0.0
    alignment: float = 0.0
    alignment_autoencoder: float = 0.0

    def of_model(self, term: str) -> float:
        return self.alignment if term == "alignment" else self.beta

    def of_autoencoder(self, term: str) -> float:
        return self.alignment_autoencoder if term == "alignment" else self.beta


@dataclass(frozen=True)
class JointInputs:
    """Inputs of one forward of the joint objective: a micro-batch of one process.

    Args:
        images: (B, 3, H, W), [-1, 1].
        labels: (B,) int64, or None.
        features: (B, N, F) of the frozen encoder, or None.
        random: named draws for these rows.
        loss_scale: scalar of the gradient scaler (float16), or None.
        moments: (B, M, h, w), cached moments of the frozen encoder for these images, or None to compute them.
    """

    images: Tensor
    labels: Tensor | None
    features: Tensor | None
    random: Random
    loss_scale: Tensor | None = None
    moments: Tensor | None = None


class JointObjective(nn.Module):
    """Autoencoder, model and reconstruction losses as one module, so that DDP and FSDP see one forward.

    Args:
        autoencoder: its `trainable` decides what runs: `none` skips decoder and reconstruction altogether.
        model: None trains the autoencoder alone.
        reconstruction: weighted reconstruction terms.
        weights: of the objective.
        trains_model: False leaves the model out of the loss; it is part of the run, for samples and checkpoints.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        model: GenerativeModel | None,
        reconstruction: ReconstructionLoss,
        weights: ObjectiveWeights,
        trains_model: bool = True,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.model = model
        self.reconstruction = reconstruction
        self.weights = weights
        self.trains_model = trains_model

    def forward(
        self, batch: JointInputs, adversary: AdversarialLoss | None = None
    ) -> dict[str, Tensor | None]:
        """Compute the loss of one micro-batch.

        Args:
            batch: the micro-batch.
            adversary: its generator term joins the loss; None before its start step.
        Returns:
            `loss` (scalar, to call backward on), `reconstruction` (B, 3, H, W) or None, and every scalar for the
            log under its own name.
        """
        posterior, latents = self._encode(batch)
        log = latent_statistics(posterior, self.model.noise_std if self.model is not None else 0.0)
        loss = torch.zeros((), device=batch.images.device)
        images_out = None
        if self.autoencoder.trainable != "none":
            images_out = self.autoencoder.decode(latents)
            rec_terms = self.reconstruction(images_out, batch.images)
            rec_loss = torch.stack(list(rec_terms.values())).sum()
            loss = loss + rec_loss
            log |= {name: term.detach() for name, term in rec_terms.items()}
            if adversary is not None:
                generator_terms = adversary.generator_terms(
                    images_out, rec_loss, self.autoencoder.last_layer(), batch.loss_scale
                )
                loss = loss + generator_terms["adversarial"]
                log |= {name: term.detach() for name, term in generator_terms.items()}
        if self.model is not None and self.trains_model:
            model_loss, model_terms = self._model_loss(latents, batch)
            loss = loss + model_loss
            log |= {name: term.detach() for name, term in model_terms.items()}
        regulariser = self._posterior_regulariser(posterior)
        if regulariser is not None:
            name, value, weight = regulariser
            loss = loss + weight * value
            log[name] = value.detach()
        return {"loss": loss, "reconstruction": images_out, **log}

    def _encode(self, batch: JointInputs) -> tuple[Posterior, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.autoencoder.trainable == "full"):
            known = batch.moments
            posterior = (
                self.autoencoder.encode(batch.images) if known is None else self.autoencoder.posterior(known)
            )
            noise = batch.random.normal("posterior", posterior.mean.shape, posterior.mean.device)
            return posterior, posterior.sample(noise=noise)

    def _model_loss(self, latents: Tensor, batch: JointInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the model's terms; send to `latents` the gradient of the coupled ones only."""
        assert self.model is not None
        coupled = self._coupled_terms() if latents.requires_grad else frozenset()
        if self._shares_all(coupled, batch.features is not None):
            terms = self._terms(latents, batch)
            uncoupled = set(terms) - coupled
            if uncoupled:
                raise RuntimeError(
                    f"{type(self.model).__name__}: terms {sorted(uncoupled)} are not in coupled_terms"
                )
            return self._weigh(terms), terms
        leaf = latents.detach().requires_grad_(bool(coupled))
        own_terms = self._autoencoder_terms(leaf, batch) if coupled else None
        terms = self._terms(leaf if own_terms is None else leaf.detach(), batch)
        loss = self._weigh(terms)
        moving_terms = terms if own_terms is None else own_terms
        moving = [
            self.weights.of_autoencoder(name) * moving_terms[name]
            for name in sorted(coupled & set(moving_terms))
        ]
        if moving:
            # Scaled as the backward pass will be, so that float16 gradients inside the model do not underflow.
            # After both passes: under FSDP2 a backward pass ends the one forward pass that the wrapper knows of.
            scale = 1.0 if batch.loss_scale is None else batch.loss_scale
            (scaled,) = torch.autograd.grad(torch.stack(moving).sum() * scale, leaf, retain_graph=True)
            gradient = scaled.float() / scale
            surrogate = (latents * gradient).sum()
            loss = loss + surrogate - surrogate.detach()
        if own_terms is not None:
            terms = terms | {f"{name}_autoencoder": term for name, term in own_terms.items()}
        return loss, terms

    def _autoencoder_terms(self, leaf: Tensor, batch: JointInputs) -> dict[str, Tensor] | None:
        """Return the terms of the pass that moves the autoencoder alone, or None if it shares the model's."""
        assert self.model is not None
        terms = self.model.autoencoder_losses(leaf, batch.labels, batch.features, batch.random)
        if terms is not None and set(terms) - self.model.coupled_terms:
            uncoupled = sorted(set(terms) - self.model.coupled_terms)
            raise RuntimeError(f"{type(self.model).__name__}: terms {uncoupled} are not in coupled_terms")
        return terms

    def _terms(self, latents: Tensor, batch: JointInputs) -> dict[str, Tensor]:
        assert self.model is not None
        terms = self.model.training_losses(latents, batch.labels, batch.features, batch.random)
        if batch.features is not None and "alignment" not in terms:
            raise RuntimeError(
                f"{type(self.model).__name__} was given features to align with, and returned no `alignment` term"
            )
        return terms

    @property
    def moves_autoencoder_by_alignment_only(self) -> bool:
        """True if the model reaches the autoencoder by its alignment and nothing else (SiT and DiT with REPA-E)."""
        if self.model is None or self.autoencoder.trainable != "full":
            return False
        return self._coupled_terms() == {"alignment"}

    def _shares_all(self, coupled: frozenset[str], has_features: bool) -> bool:
        """Return whether every term moves model and autoencoder alike."""
        return bool(coupled - {"alignment"}) and (
            not has_features
            or ("alignment" in coupled and self.weights.alignment == self.weights.alignment_autoencoder)
        )

    def _coupled_terms(self) -> frozenset[str]:
        assert self.model is not None
        removed = {"alignment"} if self.weights.alignment_autoencoder == 0 else set()
        return self.model.coupled_terms - removed

    def _weigh(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights.of_model(name) * term for name, term in terms.items()]).sum()

    def _posterior_regulariser(self, posterior: Posterior) -> tuple[str, Tensor, float] | None:
        """Return (name, value, weight) of the term that keeps a learnable variance from collapsing.

        With a likelihood that reaches the encoder the negative ELBO asks for minus the entropy, per dimension as the
        NLL is; otherwise the usual small KL to N(0, I). A fixed variance has neither: its entropy is constant.
        """
        if not posterior.learns_variance or self.autoencoder.trainable != "full":
            return None
        if self.model is not None and "nll" in self._coupled_terms():
            dims = posterior.mean[0].numel()
            return "negative_entropy", -posterior.entropy().mean() / dims, self.weights.beta
        return "kl", posterior.kl().mean(), self.weights.kl


@torch.no_grad()
def latent_statistics(posterior: Posterior, noise_std: float = 0.0) -> dict[str, Tensor]:
    """Return what warns of a collapse of the mean, for the log.

    The spread of a channel is the standard deviation of its mean over batch and positions.

    Args:
        posterior: of a batch.
        noise_std: of the noise that the model itself adds to latents.
    Returns:
        Scalars: `latent_mean`, the average of the mean; `latent_std`, its spread; `signal_to_noise`, the spread over
        the posterior's std; all three averaged over channels; `latent_dead`, the share of dead channels; and for a
        fixed variance `nll_floor`, the entropy of the noise in nats per dimension, 1/2 log(2 pi e (std^2 +
        noise_std^2)): the NLL of a model that knows the mean exactly (0.726 at std 0.5). No model of the latents is
        below it on average, and one that reaches it has nothing left to learn from: the mean has collapsed.
    """
    mean = posterior.mean.float()
    std = posterior.std.float().expand_as(mean)
    spread = mean.std(dim=(0, 2, 3), unbiased=False)  # (C,)
    noise = std.mean(dim=(0, 2, 3))
    statistics = {
        "latent_mean": mean.mean(),
        "latent_std": spread.mean(),
        "latent_dead": (spread < DEAD_CHANNEL_RATIO * noise).float().mean(),
        "signal_to_noise": (spread / noise).mean(),
    }
    if not posterior.learns_variance:
        variance = std.square() + noise_std**2
        statistics["nll_floor"] = 0.5 * (2 * math.pi * math.e * variance).log().mean()
    return statistics


def layer_class_names(module: nn.Module) -> list[str]:
    """Return the class names of the repeated layers, the innermost ones: what FSDP2 gathers one after the other."""
    repeated = [child for part in module.modules() if isinstance(part, nn.ModuleList) for child in part]
    innermost = [
        child for child in repeated if not any(isinstance(m, nn.ModuleList) for m in child.modules())
    ]
    return sorted({type(child).__name__ for child in innermost})
