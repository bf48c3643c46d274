"""Renaming of a peer's tensors by a table of rules that must account for every key."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simflow_plugin.errors import WeightsError
from simflow_plugin.weights import listed, without_wrappers

log = logging.getLogger(__name__)

REMEDY = (
    "Names are ours. Check num_blocks, layers_per_block, the sizes and the switches that add tensors against the "
    "checkpoint."
)
"""Advice for weights that do not fit the peer's arguments."""
ANCHOR = "blocks.0.proj_in.weight"
"""Every flow of both peers has it: where it is found, the flow's tensors are."""


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """`pattern`, a full match of the peer's name -> `name`, ours; `transform` of the tensor.

    `name` None drops the tensor: nothing depends on it.
    """

    pattern: str
    name: str | None
    transform: Callable[[Tensor], Tensor] = _same


def find_module(tensors: Mapping[str, Tensor], peer: str, anchor: str = ANCHOR) -> dict[str, Tensor]:
    """Return a module's tensors by the peer's own names, out of wrappers and nested dictionaries.

    Averaged weights are preferred to the raw ones where a checkpoint holds both.

    Args:
        tensors: by name; nested dictionaries are joined by dots.
        peer: for messages.
        anchor: a name that every such module has.
    Raises:
        WeightsError: if there is no such module in it, or more than one without an average among them.
    """
    found = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    plain = without_wrappers(found, peer)
    prefixes = [name.removesuffix(anchor) for name in plain if name.endswith(anchor)]
    averaged = [prefix for prefix in prefixes if "ema" in prefix.lower()]
    chosen = averaged if len(prefixes) > 1 else prefixes
    if len(chosen) != 1:
        raise WeightsError(
            f"{peer}: expected one `{anchor}`, found {len(prefixes)}, among {len(plain)} tensors such as "
            f"{listed(plain)}. Is this a checkpoint of another architecture?"
        )
    if len(prefixes) > 1:
        log.warning("%s: taking the averaged weights, `%s`", peer, chosen[0].rstrip("."))
    return {
        name.removeprefix(chosen[0]): tensor for name, tensor in plain.items() if name.startswith(chosen[0])
    }


def convert_tensors(tensors: Mapping[str, Tensor], rules: Sequence[Rule], peer: str) -> dict[str, Tensor]:
    """Return float32 tensors by our names.

    Raises:
        WeightsError: for names that no rule matches, or a tensor of a shape that its rule cannot take.
    """
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    converted, unknown, half = {}, [], set()
    for peer_name, tensor in tensors.items():
        match, rule = next(
            ((m, rule) for pattern, rule in compiled if (m := pattern.fullmatch(peer_name))), (None, None)
        )
        if match is None or rule is None:
            unknown.append(peer_name)
            continue
        if rule.name is None:
            continue
        if tensor.dtype in (torch.float16, torch.bfloat16):
            half.add(str(tensor.dtype).removeprefix("torch."))
        try:
            ours = rule.transform(tensor.detach().to(torch.float32))
        except (RuntimeError, IndexError) as error:
            raise WeightsError(
                f"{peer}: `{peer_name}` has shape {tuple(tensor.shape)}, which does not fit the arguments: {error}"
            ) from error
        if not tensor.is_floating_point() or not bool(ours.isfinite().all()):
            raise WeightsError(
                f"{peer}: `{peer_name}` of {tensor.dtype} holds no weights of a network: expected finite "
                "floating-point numbers. Is the checkpoint of a run that diverged, or quantised?"
            )
        converted[match.expand(rule.name)] = ours
    if unknown:
        raise WeightsError(
            f"{peer}: weights of another architecture: {len(unknown)} of {len(tensors)} tensors are unknown: "
            f"{listed(unknown)}"
        )
    if half:
        log.warning("%s: weights are %s; converted to float32", peer, " and ".join(sorted(half)))
    return converted


def reordered(dim: int, index: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a transform that picks `index` along `dim`, which must have that length."""

    def transform(tensor: Tensor) -> Tensor:
        if tensor.dim() <= dim or tensor.shape[dim] != len(index):
            raise IndexError(f"dimension {dim} should be {len(index)}")
        return tensor.index_select(dim, index)

    return transform
