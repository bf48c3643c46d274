"""The adversarial loss: hinge loss on patches, adaptive weight, LeCam and R1 regularisation.

The loop owns two optimisers. From `start_step` on, in each step:

    reconstruction = autoencoder.decode(latents)
    terms = adversary.generator_terms(reconstruction, reconstruction_loss, autoencoder.last_layer())
    (loss + terms["adversarial"]).backward()          # no gradient is left in the discriminator
    ... step of the joint optimiser ...
    adversary(reconstruction.detach(), images)["discriminator"].backward()
    ... step of the discriminator's optimiser, `adversary.make_optimizer()` ...
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simflow_plugin.contracts import DataContext
from simflow_plugin.losses.discriminator import PatchDiscriminator
from simflow_plugin.losses.options import AdversarialOptions

MAX_ADAPTIVE_WEIGHT = 1e4


class AdversarialLoss(nn.Module):
    """A discriminator with the losses of both sides.

    Args:
        options: see `AdversarialOptions`.
        context: what the harness knows; its `image_size`, if any, is checked against `num_layers`.
    Raises:
        ShapeError: if the images are smaller than one patch.
    """

    Options = AdversarialOptions
    lecam_averages: Tensor
    lecam_updates: Tensor

    def __init__(self, options: AdversarialOptions, context: DataContext | None = None) -> None:
        super().__init__()
        self.options = options
        if context is not None:
            options.check(context)
        self.discriminator = PatchDiscriminator(options.width, options.num_layers, options.norm)
        if options.lecam_weight > 0:
            self.register_buffer("lecam_averages", torch.zeros(2))  # of the logits of real and of fake images
            self.register_buffer("lecam_updates", torch.zeros(()))

    def is_active(self, step: int) -> bool:
        """Return whether the adversary takes part in optimizer step `step`, counted from 0."""
        return step >= self.options.start_step

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the discriminator's own optimiser; the fused kernel can skip a step without a wait."""
        options, parameters = self.options, list(self.discriminator.parameters())
        is_fused = parameters[0].device.type in ("cpu", "cuda")
        return torch.optim.Adam(parameters, lr=options.learning_rate, betas=options.betas, fused=is_fused)

    def generator_terms(
        self,
        reconstruction: Tensor,
        reconstruction_loss: Tensor,
        last_layer: nn.Parameter,
        loss_scale: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return what the autoencoder minimises to look real.

        The discriminator's weights are constants here: the backward pass leaves nothing in their gradients.

        Args:
            reconstruction: (B, 3, H, W), with the graph of the decoder.
            reconstruction_loss: scalar of the same graph; what the adaptive weight balances against.
            last_layer: where it measures gradients.
            loss_scale: scalar of the gradient scaler (float16), or None.
        Returns:
            Float32 scalars: `adversarial`, weighted, to be added to the loss; `adversarial_weight`, its
            weight.
        """
        weights = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        loss = -functional_call(self.discriminator, weights, (reconstruction,)).float().mean()
        weight = torch.full_like(loss, self.options.weight, requires_grad=False)
        if self.options.uses_adaptive_weight:
            weight = weight * adaptive_weight(reconstruction_loss, loss, last_layer, loss_scale)
        return {"adversarial": weight * loss, "adversarial_weight": weight}

    def forward(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Do `discriminator_loss`; a distributed wrapper sees `forward` only."""
        return self.discriminator_loss(reconstruction, images)

    def discriminator_loss(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return what the discriminator minimises.

        Args:
            reconstruction: (B, 3, H, W); detached here.
            images: (B, 3, H, W), [-1, 1].
        Returns:
            Float32 scalars: `discriminator`, the weighted sum; for the log the mean logits `logits_real` and
            `logits_fake`, and `lecam` and `r1` before their weights, where they are on.
        """
        options = self.options
        real_images = images.detach().requires_grad_(options.r1_weight > 0)
        real = self.discriminator(real_images).float()
        fake = self.discriminator(reconstruction.detach()).float()
        loss = hinge_loss(real, fake)
        terms = {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        if options.lecam_weight > 0:
            terms["lecam"] = self._lecam(real, fake)
            loss = loss + options.lecam_weight * terms["lecam"]
        if options.r1_weight > 0:
            terms["r1"] = r1_penalty(real, real_images)
            loss = loss + options.r1_weight * terms["r1"]
        return {"discriminator": loss, **terms}

    def _lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the LeCam term for the averages so far, then move the averages.

        E max(0, D(x) - a_fake)^2 + E max(0, a_real - D(y))^2, with bias-corrected averages a; they are 0
        in the first step. Reference: Regularizing GANs under limited data, arXiv:2104.03310, equation 6
        (one-sided, as its authors released it).
        """
        decay = self.options.lecam_decay
        bias = 1 - decay**self.lecam_updates
        # In the first step the averages are 0, and so is the bias: any divisor will do.
        a_real, a_fake = (self.lecam_averages / bias.clamp_min(1 - decay)).unbind()
        loss = (real - a_fake).relu().square().mean() + (a_real - fake).relu().square().mean()
        means = torch.stack([real.detach().mean(), fake.detach().mean()])
        # A step that is not finite is skipped, and must not stay in the averages; no wait for the device.
        is_finite = means.isfinite().all()
        self.lecam_averages.lerp_(torch.where(is_finite, means, self.lecam_averages), 1 - decay)
        self.lecam_updates += is_finite
        return loss


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return (E max(0, 1 - real) + E max(0, 1 + fake)) / 2 for logits of any shape."""
    return 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer: nn.Parameter,
    loss_scale: Tensor | None = None,
) -> Tensor:
    """Return |grad of reconstruction| / |grad of adversary| at the last layer, in [0, 1e4], without a graph.

    Both losses need a graph that reaches `last_layer`; it is kept for the backward pass to come. They are scaled as
    that will be, so that float16 gradients do not underflow on their way.

    Reference: Taming transformers (VQGAN), arXiv:2012.09841, equation 7.
    """
    scale = 1.0 if loss_scale is None else loss_scale
    (own,) = torch.autograd.grad(reconstruction_loss * scale, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss * scale, last_layer, retain_graph=True)
    ratio = (own.float() / scale).norm() / ((adversarial.float() / scale).norm() + 1e-4)
    return ratio.clamp(0, MAX_ADAPTIVE_WEIGHT).detach()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return E |grad of D at real images|^2 / 2, where D is the mean over patches.

    Args:
        logits: (B, 1, h', w'), of `images`, with their graph.
        images: (B, 3, H, W), requiring gradients.
    Reference:
        Which training methods for GANs do actually converge?, arXiv:1801.04406, equation 9.
    """
    per_image = logits.flatten(1).mean(1)
    (gradient,) = torch.autograd.grad(per_image.sum(), images, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()
