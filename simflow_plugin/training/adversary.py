"""Training of the discriminator beside the joint objective, on the reconstructions of each step."""

from __future__ import annotations

from torch import Tensor, nn

from simflow_plugin.losses.adversarial import AdversarialLoss
from simflow_plugin.training.averages import RunningMeans
from simflow_plugin.training.distributed.engine import TorchEngine
from simflow_plugin.training.optimizers import Clipping, clip_and_step, scale_loss
from simflow_plugin.training.stability import poison_if_not_finite


class AdversaryTraining:
    """The adversarial loss with the discriminator's optimizer; small, and never sharded.

    Precision and processes are those of the joint objective's engine.
    """

    def __init__(self, loss: AdversarialLoss, engine: TorchEngine, max_grad_norm: float | None) -> None:
        accelerator = engine.accelerator
        self.loss = loss.to(accelerator.device)
        self.optimizer = self.loss.make_optimizer()
        self._engine, self._clipping = engine, Clipping(max_grad_norm)
        self._wrapped: nn.Module = self.loss
        if accelerator.num_processes > 1:  # gradients are averaged over processes
            devices = [accelerator.device] if accelerator.device.type == "cuda" else None
            self._wrapped = nn.parallel.DistributedDataParallel(
                self.loss, device_ids=devices, gradient_as_bucket_view=True
            )

    def step(self, pairs: list[tuple[Tensor, Tensor]], means: RunningMeans) -> Tensor:
        """Let the discriminator learn from (reconstruction, images) of the micro-batches of a step.

        Returns:
            whether its gradients were finite, a scalar on the device; the step was taken only then.
        """
        scaler, share = self._engine.accelerator.scaler, 1 / len(pairs)
        for reconstruction, images in pairs:
            with self._engine.autocast():
                terms = self._wrapped(reconstruction, images)
            loss = poison_if_not_finite(terms["discriminator"]) * share
            scale_loss(loss, scaler).backward()
            means.add_all(terms, share)
        outcome = clip_and_step(self.optimizer, self._clipping, scaler)
        means.add_all({"grad_norm_discriminator": outcome.norms["grad_norm"]}, 1.0)
        return outcome.finite
