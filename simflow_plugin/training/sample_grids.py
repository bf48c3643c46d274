"""Sample grids during training: the averaged weights, classes in rows, the same noise every time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import GenerativeModel, GuidedByWeaker, ImageDataset
from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError, WeightsError
from simflow_plugin.evaluation.drawing import ImageSampler, class_labels, grid_indices, to_uint8
from simflow_plugin.evaluation.report.grids import save_image_grid, shortened_name
from simflow_plugin.flow.sampling.decode_graph import release_graphs
from simflow_plugin.objective import JointObjective
from simflow_plugin.runs.autoguidance import chosen_guide, guided
from simflow_plugin.runs.checkpoints import checkpoint_folders
from simflow_plugin.runs.module_state import restore_module, whole_tensors
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.runs.run_precision import Precision
from simflow_plugin.training.distributed.engine import TorchEngine
from simflow_plugin.training.ema import MovingAverage

log = logging.getLogger(__name__)

MAX_ROWS, ROWS_WITHOUT_CLASSES = 10, 4


class SampleGrids:
    """Writes the grids on the main process; the others only help to gather what is sharded.

    Args:
        joint: before it is sharded.
        dataset: training images; its classes are the rows of a grid.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        joint: JointObjective,
        dataset: ImageDataset,
        engine: TorchEngine,
    ) -> None:
        self._config, self._run = config, run
        self._engine, self._accelerator = engine, engine.accelerator
        self._precision = Precision.of_training(config.training, engine.accelerator.device.type)
        self._num_classes, self._class_names = dataset.num_classes, dataset.class_names or []
        self._guide: GenerativeModel | None = None
        # Sharded modules are gathered during `forward` only, and sampling calls other methods.
        self._twin = copy.deepcopy(joint).cpu() if engine.is_sharded else None

    def save(self, step: int, joint: JointObjective, ema: MovingAverage) -> Path | None:
        """Write the grid after `step` steps; nothing for an autoencoder alone. Every process must call it.

        Returns:
            the file; None for an autoencoder alone, where sampling failed, and on all processes but the main one.
        """
        if joint.model is None:
            return None
        config, classes = self._config, self._num_classes
        columns = config.sampling.grid_per_class
        indices = grid_indices(classes, columns, MAX_ROWS if classes else ROWS_WITHOUT_CLASSES)
        # Compiled layers run eagerly: sampling calls them with other shapes.
        eager = torch.compiler.set_stance("force_eager") if config.training.compile else nullcontext()
        with eager, self._averaged(joint, ema) as averaged:
            if averaged is None or averaged.model is None:
                return None
            try:
                model, weight = self._guided(averaged)
                sampler = ImageSampler(
                    averaged.autoencoder, model, config.image_size, self._precision, weight
                )
                images = sampler.draw(indices, class_labels(indices, classes))
            except (EvaluationError, ConfigError, CheckpointError, WeightsError) as error:
                # The run may still find its way back, and a guide that was moved be put back; a black grid would say
                # nothing.
                log.warning("No grid of samples at step %d: %s", step, error)
                return None
            finally:
                release_graphs()  # training has a use for the memory of their caches
        by_class = to_uint8(images).unflatten(0, (columns, -1)).transpose(0, 1).flatten(0, 1)
        self._run.check_lock()
        names = [shortened_name(name) for name in self._class_names[: len(by_class) // columns]] or None
        path = self._run.samples / f"step_{step:08d}.png"
        save_image_grid(by_class, path, columns, names)
        return path

    def _guided(self, joint: JointObjective) -> tuple[GenerativeModel, float]:
        """Return the model, guided by a weaker one where the configuration says so, and the guidance weight.

        A guide that is a later checkpoint of this run is not there yet: until then grids are drawn without guidance.

        Raises:
            EvaluationError, ConfigError, CheckpointError, WeightsError: if the guide is gone, or does not fit.
        """
        config, model = self._config, joint.model
        assert model is not None
        if config.sampling.autoguidance is None:
            return model, config.sampling.guidance
        if self._guide is None:
            choice = chosen_guide(config, self._run.path)
            assert choice is not None
            steps = {folder.name for folder in checkpoint_folders(self._run.checkpoints)}
            if choice.is_own and f"step_{choice.step:08d}" not in steps:
                return model, 0.0
            loaded = choice.load(self._accelerator.device, True, self._precision.name)
            shape = joint.autoencoder.latent_shape(config.image_size)
            guided(model, shape, loaded, choice)  # refuses one that does not fit
            self._guide = loaded.require_model()  # its autoencoder need not stay on the device
        assert isinstance(model, GuidedByWeaker)
        return model.guided_by(self._guide), config.sampling.guidance

    @contextmanager
    def _averaged(self, joint: JointObjective, ema: MovingAverage) -> Iterator[JointObjective | None]:
        """Give the main process the averaged weights, unsharded and in eval mode, and the others None."""
        is_main = self._accelerator.is_main_process
        if self._twin is not None:
            state = whole_tensors(self._engine.joint.state_dict().items(), is_main)
            state |= whole_tensors(ema.average.items(), is_main)
            if is_main:
                restore_module(self._twin, state, self._run.path)
                yield self._twin.to(self._accelerator.device).eval()
                self._twin.cpu()
                return
        elif is_main:
            with ema.applied(joint):
                yield joint
            return
        yield None
