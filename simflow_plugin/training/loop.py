"""The training loop: one for all models, resumable bit for bit.

    for step: set the learning rate; for each micro-batch: features, joint loss, backward; clip, step, EMA;
    discriminator; at their intervals: log, sample grid, checkpoint.

What a step computes depends on (weights, seed, step) only: all randomness is derived from the seed, its purpose and the
step (`simflow_plugin.randomness`), and the data order from the position in the run (`simflow_plugin.data.order`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from simflow_plugin.config.average_options import PowerAverage
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import Batch, check_corrupt, make_loader
from simflow_plugin.data.order import GlobalBatches
from simflow_plugin.data.summary import content_digests
from simflow_plugin.errors import TrainingError
from simflow_plugin.files import is_disk_full
from simflow_plugin.objective import JointInputs, layer_class_names
from simflow_plugin.randomness import BatchRandom
from simflow_plugin.runs.parts import Parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.training.adversary import AdversaryTraining
from simflow_plugin.training.averages import RunningMeans
from simflow_plugin.training.checkpointing import Checkpointing, Snapshot
from simflow_plugin.training.compilation import begin_pass, compile_layers
from simflow_plugin.training.distributed.engine import TorchEngine
from simflow_plugin.training.distributed.processes import (
    Processes,
    keep_frozen_at_home,
    synchronise_batch_norms,
)
from simflow_plugin.training.ema import WeightAverages, running_statistics
from simflow_plugin.training.frozen_networks import FrozenNetworks
from simflow_plugin.training.interrupts import Interrupted, StopRequest
from simflow_plugin.training.optimizers import (
    learning_rate_ratio,
    learning_rates,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from simflow_plugin.training.profiling import profiled
from simflow_plugin.training.progress import TrainingProgress
from simflow_plugin.training.sample_grids import SampleGrids
from simflow_plugin.training.stability import (
    BadSteps,
    FiniteStatistics,
    poison_if_not_finite,
)
from simflow_plugin.training.trackers import Tracker


class Trainer:
    """One run of the loop.

    Args:
        run: directory, prepared and locked by the caller on the main process.
        parts: freshly built; their initial weights depend on the seed only.
        dataset: the training split.
        stop: set by SIGTERM or SIGINT.
        profile_steps: record this many steps to `trace.json` in the run directory.
        shows_progress: on the main process.
    Raises:
        ConfigError: if accelerate was configured for an engine that this loop does not run.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        parts: Parts,
        dataset: ImageDataset,
        accelerator: Accelerator,
        stop: StopRequest,
        profile_steps: int = 0,
        shows_progress: bool = True,
    ) -> None:
        self.engine = TorchEngine(accelerator, config.optimizer)
        self.config, self.run_directory, self.dataset = config, run, dataset
        self.accelerator, self.stop = accelerator, stop
        self.device = accelerator.device
        self.profile_steps = profile_steps
        self.shows_progress = shows_progress and accelerator.is_main_process
        self.processes = Processes(accelerator.num_processes)
        self.joint = synchronise_batch_norms(parts.joint.to(self.device), accelerator.num_processes)
        self.frozen = FrozenNetworks(parts, config, dataset, self.processes)
        self.adversary: AdversaryTraining | None = None
        if parts.adversary is not None:
            self.adversary = AdversaryTraining(parts.adversary, self.engine, config.optimizer.max_grad_norm)
        self.joint.train()
        self.sample_grids = SampleGrids(config, run, self.joint, dataset, self.engine)
        compile_layers(self.joint.model, config.training.compile)
        trained: dict[str, torch.nn.Module] = {"autoencoder": self.joint.autoencoder}
        if self.joint.model is not None:
            trained["model"] = self.joint.model
        optimizer = make_optimizer(parameter_groups(trained, config.optimizer), config.optimizer, self.device)
        if self.joint.model is not None:  # accelerate asks the module which layers to shard one by one
            self.joint._no_split_modules = layer_class_names(self.joint.model)  # type: ignore[assignment]
        keep_frozen_at_home(self.joint)
        self.wrapped = self.engine.prepare(self.joint, optimizer)
        self.optimizer = self.engine.optimizer
        # After `prepare`: where that sharded the parameters, their averages are sharded too.
        self.averages = WeightAverages(
            self.engine.averaged(), config.training.ema, not self.joint.moves_autoencoder_by_alignment_only
        )
        self.step = 0
        self.seconds = 0.0
        self.bad_steps = BadSteps(
            config.training.max_bad_steps, self.device, _parts_with_a_loss(config, trained)
        )
        self.statistics = FiniteStatistics(running_statistics(self.joint))
        # Images that could not be read: by this process, and since the last logged step by any.
        self.corrupt: set[int] = set()
        self.means = RunningMeans()
        snapshot = Snapshot(self.engine, self.averages, self.adversary, self.means, self.bad_steps)
        self.checkpoints = Checkpointing(
            run,
            config,
            self.processes,
            snapshot,
            _description(parts, dataset, accelerator.is_main_process),
        )

    # ------------------------------------------------------------------ the loop

    def train(self) -> None:
        """Run from the last checkpoint, or from the start, to the last step.

        Raises:
            Interrupted: after a signal, when the state was saved.
            TrainingError: if steps stay non-finite or without any gradient, or none was taken, or the disk is
                full.
        """
        try:
            self._resume()
            tracker = None
            if self.accelerator.is_main_process:
                tracker = Tracker(self.run_directory, self.config, self.step)
            progress = TrainingProgress(
                self.config.training.steps, self.step, self.shows_progress, self._synchronise
            )
            trace = self.run_directory.path / "trace.json"
            recorded = self.profile_steps if self.accelerator.is_main_process else 0
            try:
                with progress, profiled(recorded, trace) as step_done:
                    self._run(tracker, progress, step_done)
            finally:
                if tracker is not None:
                    tracker.close()
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise TrainingError(
                f"{self.run_directory.path}: the disk is full ({error}). The last good checkpoint is "
                f"{self.checkpoints.last_name()}. Free some space and run the same command again."
            ) from error

    def _run(
        self, tracker: Tracker | None, progress: TrainingProgress, step_done: Callable[[], None]
    ) -> None:
        training = self.config.training
        batches = iter(self._loader())
        started = time.monotonic()
        logged_at, logged_step = started, self.step
        while self.step < training.steps:
            self._train_step(batches)
            self.step += 1
            step_done()
            progress.advance()
            if self.step % training.log_every == 0 or self.step == training.steps:
                now = time.monotonic()
                rate = (self.step - logged_step) * training.batch_size / max(now - logged_at, 1e-9)
                row, bad_terms = self._log_row(self.seconds + now - started, rate)
                logged_at, logged_step = now, self.step
                if tracker is not None:
                    tracker.log(row)
                progress.show(row)
                self.bad_steps.check(bad_terms, self.checkpoints.last_name)
            if isinstance(training.ema, PowerAverage) and self.step % training.ema.snapshot_every == 0:
                self.checkpoints.save_averages(self.step)
            if self.step % training.sample_every == 0 or self.step == training.steps:
                grid = self.sample_grids.save(self.step, self.joint, self.averages.main)
                if tracker is not None and grid is not None:
                    tracker.log_picture("samples", grid, self.step)
            stopping = self.processes.any(self.stop.requested)
            if self.step % training.checkpoint_every == 0 or self.step == training.steps or stopping:
                now = time.monotonic()
                self.seconds, started = self.seconds + now - started, now
                self.checkpoints.save(self.step, self.seconds, self.corrupt)
            if stopping and self.step < training.steps:
                raise Interrupted(
                    f"stopped by {self.stop.signal_name or 'another process'} after step {self.step}"
                )

        self.bad_steps.check_any_taken(self.step, self.checkpoints.last_name)

    def _resume(self) -> None:
        checkpoint = self.checkpoints.restore(self.dataset)
        if checkpoint is not None:
            self.statistics.mend()  # what the checkpoint held is what a bad step falls back on
            self.step, self.seconds = checkpoint.step, float(checkpoint.state["seconds"])
            self.corrupt.update(checkpoint.state.get("corrupt_images", []))

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _train_step(self, batches: Iterator[Batch]) -> None:
        config = self.config
        ratio = learning_rate_ratio(self.step, config.training.steps, config.optimizer)
        set_learning_rate(self.optimizer, ratio)
        adversary = self.adversary
        if adversary is not None and not adversary.loss.is_active(self.step):
            adversary = None
        share = 1 / config.training.accumulation
        pairs = []
        for index in range(config.training.accumulation):
            batch = next(batches)
            images = batch.images.to(self.device, non_blocking=True)
            begin_pass(config.training.compile)
            with self.engine.micro_batch(is_last=index == config.training.accumulation - 1):
                output = self._forward(batch, images, None if adversary is None else adversary.loss)
                self.engine.backward(poison_if_not_finite(output["loss"]) * share)
            self.means.add_all(output, share)
            if adversary is not None and output["reconstruction"] is not None:
                pairs.append((output["reconstruction"].detach(), images))
        outcome = self.engine.step()
        self.means.add_all(outcome.norms, 1.0)
        self.bad_steps.update(outcome)
        self.statistics.mend()
        self.averages.update(self.engine.averaged(), self.step)
        if adversary is not None:
            self.bad_steps.update_discriminator(adversary.step(pairs, self.means))
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.means.end_step()

    def _forward(self, batch: Batch, images: Tensor, adversary: Any) -> dict[str, Any]:
        labels = (
            batch.labels.to(self.device, non_blocking=True) if self.dataset.num_classes is not None else None
        )
        with self.engine.autocast():
            random = BatchRandom(self.config.seed, self.step, batch.offset, self.config.training.batch_size)
            inputs = JointInputs(
                images,
                labels,
                self.frozen.features(batch, images),
                random,
                self.engine.loss_scale(),
                self.frozen.moments(batch, self.device),
            )
            return self.wrapped(inputs, adversary)

    # ------------------------------------------------------------------ data and log

    def _loader(self) -> Any:
        training, accelerator = self.config.training, self.accelerator
        return make_loader(
            self.dataset,
            GlobalBatches(training.batch_size, accelerator.num_processes, training.accumulation),
            self.config.seed,
            range(self.step, training.steps),
            accelerator.process_index,
            training.horizontal_flip,
            training.num_workers,
            self.corrupt,
        )

    def _log_row(self, seconds: float, images_per_second: float) -> tuple[dict[str, Any], list[str]]:
        """Return the means since the last row, and the names of terms that were not always finite.

        The only place between checkpoints that waits for the device.
        """
        means = self.means.take_means(self.accelerator)
        self.corrupt |= self.processes.union(self.corrupt)
        check_corrupt(self.dataset, len(self.corrupt))
        row: dict[str, Any] = {"step": self.step, "seconds": round(seconds, 3), **means.values}
        row |= learning_rates(self.optimizer, default="model")
        if self.adversary is not None:
            row |= learning_rates(self.adversary.optimizer, default="discriminator")
        row |= {"images_per_second": round(images_per_second, 2), **self.bad_steps.log_row(self.step)}
        if self.corrupt:
            row["corrupt_images"] = len(self.corrupt)
        if means.not_finite:
            row["not_finite"] = means.not_finite
        return row, list(means.not_finite)


def _description(parts: Parts, dataset: ImageDataset, is_main: bool) -> dict[str, Any]:
    """Return facts of data and parts that a checkpoint keeps in `state.json`."""
    return {
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
        "num_images": len(dataset),
        "content_digests": content_digests(dataset) if is_main else [],
        "feature_dim": None if parts.encoder is None else parts.encoder.feature_dim,
        "autoencoder_options": parts.joint.autoencoder.self_contained_options(),
    }


def _parts_with_a_loss(config: RunConfig, parts: Iterable[str]) -> list[str]:
    """Return the trained parts that some term moves: with `beta: 0` and no alignment the model has none."""
    alignment = config.alignment.weight if config.alignment is not None else 0.0
    return [part for part in parts if part != "model" or config.objective.beta > 0 or alignment > 0]
