"""The training loop: straight down, the same for every model, resumable bit for bit.

    for step: set the learning rate; for each micro-batch: features, joint loss, backward; clip, step, EMA;
    discriminator; at their intervals: log, sample grid, checkpoint.

What a step computes depends on (weights, seed, step) only: all randomness is derived from the seed, its purpose and the
step (`simflow_plugin.randomness`), and the data order from the position in the run (`simflow_plugin.data.order`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from simflow_plugin.config import RunConfig
from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import Batch, make_loader
from simflow_plugin.engine.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from simflow_plugin.engine.ema import ExponentialMovingAverage
from simflow_plugin.engine.interrupts import Interrupted, StopRequest
from simflow_plugin.engine.joint import JointInputs
from simflow_plugin.engine.optimizers import (
    clip_and_check,
    learning_rate_ratio,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
    step_if_finite,
)
from simflow_plugin.engine.parts import Parts
from simflow_plugin.engine.progress import TrainingProgress
from simflow_plugin.engine.run_directory import RunDirectory
from simflow_plugin.engine.sampling import balanced_labels, draw_images, to_uint8
from simflow_plugin.engine.stability import BadStepCounter
from simflow_plugin.engine.state import optimizer_tensors, restore_module, restore_optimizer, whole_tensors
from simflow_plugin.engine.trackers import Tracker
from simflow_plugin.randomness import BatchRandom
from simflow_plugin.report.grids import save_image_grid

STOP_POLL_STEPS = 10
"""How often processes agree on whether one of them was asked to stop; alone, a process looks at every step."""


class Trainer:
    """One run of the loop.

    Args:
        config: resolved.
        run: its directory, prepared and locked by the caller on the main process.
        parts: freshly built; their initial weights depend on the seed only.
        dataset: the training split.
        accelerator: devices, processes and mixed precision.
        stop: set by SIGTERM or SIGINT.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        parts: Parts,
        dataset: ImageDataset,
        accelerator: Accelerator,
        stop: StopRequest,
    ) -> None:
        self.config, self.run_directory, self.dataset = config, run, dataset
        self.accelerator, self.stop = accelerator, stop
        self.device = accelerator.device
        self.joint = parts.joint.to(self.device)
        self.encoder = parts.encoder.to(self.device) if parts.encoder is not None else None
        self.adversary = parts.adversary.to(self.device) if parts.adversary is not None else None
        self.joint.train()
        self.ema = ExponentialMovingAverage(self.joint, config.training.ema_decay)
        if config.training.compile:
            self.joint.compile()
        trained: dict[str, torch.nn.Module] = {"autoencoder": self.joint.autoencoder}
        if self.joint.model is not None:
            trained["model"] = self.joint.model
        optimizer = make_optimizer(parameter_groups(trained, config.optimizer), config.optimizer, self.device)
        self.wrapped, prepared = accelerator.prepare(self.joint, optimizer)
        self.optimizer: torch.optim.Optimizer = getattr(prepared, "optimizer", prepared)
        self.adversary_optimizer = self._make_adversary_optimizer()
        rebuild = self.joint.autoencoder.rebuild_options()
        self._description = {
            "num_classes": dataset.num_classes,
            "feature_dim": getattr(self.encoder, "feature_dim", None),
            "autoencoder_options": rebuild.model_dump(mode="json") if rebuild is not None else None,
        }
        self.step = 0
        self.seconds = 0.0
        self.bad_steps = BadStepCounter(config.training.max_bad_steps, self.device)
        self._sums: dict[str, Tensor] = {}
        self._summed_steps = 0

    # ------------------------------------------------------------------ the loop

    def train(self) -> None:
        """Run from the last checkpoint, or from the start, to the last step.

        Raises:
            Interrupted: after a signal, when the state was saved.
            TrainingError: if steps stay non-finite, or the disk is full.
        """
        self._restore()
        tracker = Tracker(self.run_directory, self.config) if self.accelerator.is_main_process else None
        progress = TrainingProgress(self.config.training.steps, self.step, self.accelerator.is_main_process)
        try:
            with progress:
                self._run(tracker, progress)
        finally:
            if tracker is not None:
                tracker.close()

    def _run(self, tracker: Tracker | None, progress: TrainingProgress) -> None:
        training = self.config.training
        batches = iter(self._loader())
        started = time.monotonic()
        logged_at, logged_step = started, self.step
        while self.step < training.steps:
            self._train_step(batches)
            self.step += 1
            progress.advance()
            if self.step % training.log_every == 0 or self.step == training.steps:
                now = time.monotonic()
                rate = (self.step - logged_step) * training.batch_size / max(now - logged_at, 1e-9)
                row = self._log_row(self.seconds + now - started, rate)
                logged_at, logged_step = now, self.step
                if tracker is not None:
                    tracker.log(row)
                progress.show(row)
                self.bad_steps.check(row, self._last_checkpoint_name())
            if self.step % training.sample_every == 0 or self.step == training.steps:
                self._save_sample_grid()
            stopping = self._stop_requested()
            if self.step % training.checkpoint_every == 0 or self.step == training.steps or stopping:
                now = time.monotonic()
                self.seconds, started = self.seconds + now - started, now
                self._save()
            if stopping and self.step < training.steps:
                raise Interrupted(
                    f"stopped by {self.stop.signal_name or 'another process'} after step {self.step}"
                )

    def _train_step(self, batches: Iterator[Batch]) -> None:
        config = self.config
        ratio = learning_rate_ratio(self.step, config.training.steps, config.optimizer)
        set_learning_rate(self.optimizer, ratio)
        adversary = self._active_adversary()
        pairs = []
        for index in range(config.training.accumulation):
            batch = next(batches)
            last = index == config.training.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                output = self._forward(batch, adversary)
                self.accelerator.backward(output["loss"] / config.training.accumulation)
            self._accumulate(output, config.training.accumulation)
            if adversary is not None and output["reconstruction"] is not None:
                pairs.append((output["reconstruction"].detach(), batch.images.to(self.device)))
        self._optimizer_step()
        if adversary is not None:
            self._adversary_step(pairs)
        self._summed_steps += 1

    def _forward(self, batch: Batch, adversary: Any) -> dict[str, Any]:
        images = batch.images.to(self.device, non_blocking=True)
        labels = (
            batch.labels.to(self.device, non_blocking=True) if self.dataset.num_classes is not None else None
        )
        features = None
        with self.accelerator.autocast():
            if self.encoder is not None:
                with torch.no_grad():
                    features = self.encoder.encode(images)  # type: ignore[operator]
            random = BatchRandom(self.config.seed, self.step, batch.offset, self.config.training.batch_size)
            return self.wrapped(JointInputs(images, labels, features, random), adversary)

    def _optimizer_step(self) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm, finite = clip_and_check(parameters, self.config.optimizer.max_grad_norm)
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            step_if_finite(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps.update(finite)
        self._add("grad_norm", norm.detach())
        self.ema.update(self.accelerator.unwrap_model(self.wrapped), self.step)

    # ------------------------------------------------------------------ the discriminator

    def _make_adversary_optimizer(self) -> torch.optim.Optimizer | None:
        if self.adversary is None:
            return None
        self.adversary, optimizer = self.accelerator.prepare(self.adversary, self.adversary.make_optimizer())
        return getattr(optimizer, "optimizer", optimizer)

    def _active_adversary(self) -> Any:
        if self.adversary is None:
            return None
        adversary = self.accelerator.unwrap_model(self.adversary)
        return adversary if adversary.is_active(self.step) else None

    def _adversary_step(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        assert self.adversary is not None
        assert self.adversary_optimizer is not None
        self.adversary_optimizer.zero_grad(set_to_none=True)
        for reconstruction, images in pairs:
            with self.accelerator.autocast():
                terms = self.adversary(reconstruction, images)
            (terms["discriminator"] / len(pairs)).backward()
            self._accumulate({name: term.detach() for name, term in terms.items()}, len(pairs))
        _, finite = clip_and_check(self.adversary.parameters(), self.config.optimizer.max_grad_norm)
        step_if_finite(self.adversary_optimizer, finite)

    # ------------------------------------------------------------------ data, log, samples

    def _loader(self) -> Any:
        training = self.config.training
        return make_loader(
            self.dataset,
            batch_size=training.batch_size,
            seed=self.config.seed,
            start_step=self.step,
            num_steps=training.steps - self.step,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=training.accumulation,
            horizontal_flip=training.horizontal_flip,
            num_workers=training.num_workers,
        )

    def _accumulate(self, output: dict[str, Any], parts: int) -> None:
        for name, value in output.items():
            if isinstance(value, Tensor) and value.ndim == 0:
                self._add(name, value.detach() / parts)

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def _log_row(self, seconds: float, images_per_second: float) -> dict[str, float]:
        """Average the sums since the last row over steps and processes; the only place that waits for the device."""
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[name].float() for name in names]) / max(1, self._summed_steps)
        means = self.accelerator.reduce(stacked, reduction="mean").tolist()
        self._sums, self._summed_steps = {}, 0
        skipped, _ = self.bad_steps.read()
        row: dict[str, float] = {"step": self.step, "seconds": round(seconds, 3)}
        row |= dict(zip(names, means, strict=True))
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "images_per_second": round(images_per_second, 2)}
        return row | {"skipped_steps": skipped}

    def _save_sample_grid(self) -> None:
        """Write a grid of samples of the averaged weights, classes in rows, the same noise every time."""
        joint = self.accelerator.unwrap_model(self.wrapped)
        if joint.model is None:
            return
        sampling, classes = self.config.sampling, self.dataset.num_classes
        rows = min(classes or 4, 10)
        labels = balanced_labels(rows * sampling.grid_per_class, rows if classes else None)
        with self.ema.applied(joint), self.accelerator.autocast():
            images = draw_images(
                joint.autoencoder,
                joint.model,
                range(len(labels)),
                labels,
                sampling.guidance,
                self.config.seed,
                self.config.image_size,
            )
        if self.accelerator.is_main_process:
            by_class = (
                to_uint8(images).unflatten(0, (sampling.grid_per_class, rows)).transpose(0, 1).flatten(0, 1)
            )
            path = self.run_directory.samples / f"step_{self.step:08d}.png"
            save_image_grid(by_class, path, num_columns=sampling.grid_per_class)

    # ------------------------------------------------------------------ state

    def _stop_requested(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.stop.requested
        if self.step % STOP_POLL_STEPS:
            return False
        flag = torch.tensor(float(self.stop.requested), device=self.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)

    def _save(self) -> None:
        tensors = {
            "joint": whole_tensors(self.accelerator.unwrap_model(self.wrapped).state_dict()),
            "ema": whole_tensors(self.ema.state_dict()),
            "optimizer": optimizer_tensors(self.joint, self.optimizer),
        }
        if self.adversary is not None and self.adversary_optimizer is not None:
            adversary = self.accelerator.unwrap_model(self.adversary)
            tensors["adversary"] = whole_tensors(adversary.state_dict())
            tensors["adversary_optimizer"] = optimizer_tensors(adversary, self.adversary_optimizer)
        total, in_a_row = self.bad_steps.read()
        scaler = self.accelerator.scaler
        state = {
            "seconds": self.seconds,
            "skipped_steps": total,
            "skipped_in_a_row": in_a_row,
            "num_processes": self.accelerator.num_processes,
            "scaler": scaler.state_dict() if scaler is not None else None,
            **self._description,
        }
        if self.accelerator.is_main_process:
            training = self.config.training
            save_checkpoint(self.run_directory.checkpoints, self.step, tensors, state)
            prune_checkpoints(self.run_directory.checkpoints, training.keep_checkpoints, training.keep_every)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        checkpoint = latest_checkpoint(self.run_directory.checkpoints)
        if self.accelerator.is_main_process:
            self.run_directory.forget_metrics_after(checkpoint.step if checkpoint else 0)
        self.accelerator.wait_for_everyone()
        if checkpoint is not None:
            self._restore_from(checkpoint)

    def _restore_from(self, checkpoint: Checkpoint) -> None:
        joint = self.accelerator.unwrap_model(self.wrapped)
        restore_module(joint, checkpoint.tensors("joint"), checkpoint.path)
        self.ema.load_state_dict(checkpoint.tensors("ema"))
        restore_optimizer(self.joint, self.optimizer, checkpoint.tensors("optimizer"), checkpoint.path)
        if self.adversary is not None and self.adversary_optimizer is not None:
            adversary = self.accelerator.unwrap_model(self.adversary)
            restore_module(adversary, checkpoint.tensors("adversary"), checkpoint.path)
            optimizer_state = checkpoint.tensors("adversary_optimizer")
            restore_optimizer(adversary, self.adversary_optimizer, optimizer_state, checkpoint.path)
        state = checkpoint.state
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = checkpoint.step, float(state["seconds"])
        self.bad_steps = BadStepCounter(
            self.bad_steps.limit, self.device, int(state["skipped_steps"]), int(state["skipped_in_a_row"])
        )

    def _last_checkpoint_name(self) -> str:
        checkpoint = latest_checkpoint(self.run_directory.checkpoints)
        return str(checkpoint.path) if checkpoint is not None else "(none yet)"
