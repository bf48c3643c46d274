"""Weights of another run as the start of a new one: `training.init_from`.

Autoencoder and model are copied tensor by tensor; names and shapes must agree. Excepted are what another set of classes
sizes or numbers differently, and the alignment head of another encoder: these start anew, and are named in the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import ImageDataset, ModelContext
from simflow_plugin.errors import WeightsError
from simflow_plugin.registry import Part
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import Parts, build_model
from simflow_plugin.runs.sources import open_run
from simflow_plugin.weights import fitted_state, listed

ALIGNMENT_HEAD = "alignment."
REMEDY = "Take over the source's options of autoencoder and model, or name another training.init_from"


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: their number, or None without labels, and their names where they are known."""

    count: int | None
    names: Sequence[str] | None

    @classmethod
    def of(cls, source: ImageDataset | LoadedRun) -> Classes:
        return cls(source.num_classes, source.class_names)

    def equals(self, other: Classes) -> bool:
        """Return whether a class number means the same in both, as far as names are known."""
        is_same = self.names is None or other.names is None or list(self.names) == list(other.names)
        return self.count == other.count and is_same

    def __str__(self) -> str:
        return "no classes" if self.count is None else f"{self.count} classes"


def start_from(config: RunConfig, parts: Parts, classes: Classes) -> list[str]:
    """Copy the weights that `training.init_from` names into freshly built parts of a run on data of `classes`.

    Returns:
        what was copied and what starts anew, in sentences for the log; none without `init_from`.
    Raises:
        ConfigError, CheckpointError: if there is no such run.
        WeightsError: if its tensors do not fit; the message names them.
    """
    wanted = config.training.init_from
    if wanted is None:
        return []
    loaded = open_run(
        wanted.source,
        device="cpu",
        averaged=wanted.weights == "averaged",
        step=wanted.step,
        precision="float32",
    )
    origin = f"training.init_from {wanted.source}"
    notes = [f"{origin}: step {loaded.checkpoint.step}, {loaded.weights_name} weights"]
    _copy(parts.joint.autoencoder, loaded.autoencoder.state_dict(), f"{origin}: autoencoder")
    model, source = parts.joint.model, loaded.model
    if model is None or source is None or config.model is None:
        missing = (
            "this run trains no model" if model is None else "the source has no model, which starts anew"
        )
        return [*notes, f"{origin}: the autoencoder only; {missing}"]
    shape = loaded.autoencoder.latent_shape(config.image_size)
    new = _of_classes(config.model, shape, loaded, classes)
    if new:
        before = Classes.of(loaded)
        other = (
            f"{classes} instead of {before}" if classes.count != before.count else "classes of other names"
        )
        notes.append(f"{origin}: {other}, so a new table of classes: {listed(new)}")
    tensors = source.state_dict()
    own_head = {name for name in model.state_dict() if name.startswith(ALIGNMENT_HEAD)}
    if own_head and not _fits(model, tensors, own_head):
        notes.append(f"{origin}: it was aligned otherwise or not at all, so a new alignment head")
        new |= own_head
    kept = {name: tensor for name, tensor in tensors.items() if name not in new}
    if not own_head:
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(ALIGNMENT_HEAD)}
    _copy(model, kept, f"{origin}: model", new)
    return notes


def _of_classes(
    part: Part, latent_shape: tuple[int, int, int], loaded: LoadedRun, classes: Classes
) -> set[str]:
    """Return the names of tensors that belong to the classes, of both models, where the classes are not the same.

    Those whose shape changes with the number of classes; a model without classes may lack them.
    """
    before = Classes.of(loaded)
    if before.equals(classes):
        return set()
    found: set[str] = set()
    for count in {before.count, classes.count} - {None}:
        one, other = (
            _shapes(part, ModelContext(latent_shape, number)) for number in (count, (count or 0) + 1)
        )
        found |= {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    if None in (before.count, classes.count):
        with_none = _shapes(part, ModelContext(latent_shape))
        labelled = _shapes(part, ModelContext(latent_shape, before.count or classes.count))
        found |= with_none.keys() ^ labelled.keys()
    return found


def _shapes(part: Part, context: ModelContext) -> dict[str, torch.Size]:
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        outline = build_model(part, replace(context, is_restored=True))
    assert outline is not None
    return {name: tensor.shape for name, tensor in outline.state_dict().items()}


def _fits(module: nn.Module, tensors: Mapping[str, Tensor], names: set[str]) -> bool:
    own = module.state_dict()
    return all(name in tensors and tensors[name].shape == own[name].shape for name in names)


def _copy(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, without: set[str] | None = None
) -> None:
    """Copy all tensors of a module but those `without`; every tensor of both sides must find its place."""
    own = module.state_dict()
    expected = {name: tensor for name, tensor in own.items() if name not in (without or ())}
    fitting = fitted_state(expected, tensors, source, REMEDY, WeightsError)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(fitting[name])
