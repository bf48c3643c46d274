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
WILD = {"i": r"\d+", "j": r"\d+", "w": "weight|bias"}


def unchanged(tensor: Tensor) -> Tensor:
    """Return the tensor as it is."""
    return tensor


@dataclass(frozen=True)
class Rule:
    """The peer's name -> `ours`, with a `transform` of the tensor.

    In both names `{i}` and `{j}` are numbers, of blocks and layers, and `{w}` is `weight` or `bias`. `ours` None drops
    the tensor: nothing depends on it.
    """

    theirs: str
    ours: str | None
    transform: Callable[[Tensor], Tensor] = unchanged

    def match(self, name: str) -> re.Match[str] | None:
        """Match a name of the peer."""
        pattern = re.sub(
            r"\\{(\w)\\}", lambda found: f"(?P<{found[1]}>{WILD[found[1]]})", re.escape(self.theirs)
        )
        return re.fullmatch(pattern, name)


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


def convert_tensors(
    tensors: Mapping[str, Tensor], rules: Sequence[Rule], peer: str, remedy: str = REMEDY
) -> dict[str, Tensor]:
    """Return the tensors by our names, floating ones in float32; the first rule that matches a name wins.

    Args:
        tensors: by the peer's names.
        rules: of all of them.
        peer: for messages.
        remedy: advice for names that no rule matches.
    Raises:
        WeightsError: for such names, or a tensor of a shape or type that its rule cannot take.
    """
    converted, unknown, half = {}, [], set()
    for theirs, tensor in tensors.items():
        found = next(((rule, match) for rule in rules if (match := rule.match(theirs))), None)
        if found is None:
            unknown.append(theirs)
            continue
        rule, match = found
        if rule.ours is None:
            continue
        if rule.transform is not unchanged and not tensor.is_floating_point():
            raise WeightsError(
                f"{peer}: `{theirs}` of {tensor.dtype} holds no weights of a network: expected floating-point numbers. "
                "Is the checkpoint quantised?"
            )
        if tensor.dtype in (torch.float16, torch.bfloat16):
            half.add(str(tensor.dtype).removeprefix("torch."))
        try:
            # Integers that are taken as they are: counters, or refused when the weights are loaded.
            exact = tensor.detach().to(torch.float32) if tensor.is_floating_point() else tensor
            converted[rule.ours.format(**match.groupdict())] = rule.transform(exact)
        except (RuntimeError, IndexError) as error:
            raise WeightsError(
                f"{peer}: `{theirs}` has shape {tuple(tensor.shape)}, which does not fit the arguments: {error}"
            ) from error
    if unknown:
        raise WeightsError(
            f"{peer}: weights of another architecture: {len(unknown)} of {len(tensors)} tensors are unknown: "
            f"{listed(unknown)}. {remedy}"
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
