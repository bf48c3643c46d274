"""Reading an autoencoder's weights from a checkpoint file, whatever wraps them.

A file may nest the autoencoder in dictionaries (`state_dict`, `vae`) and prefixes (`first_stage_model.`,
`module.`, `network.`). Nested names are joined by dots; the autoencoder is what shares the prefix of
`encoder.conv_in.weight`. Nothing is unpickled but tensors.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from simflow_plugin.autoencoders.ldm import is_ldm, ldm_to_diffusers
from simflow_plugin.errors import WeightsError

ANCHOR = "encoder.conv_in.weight"
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError),
    *(LookupError, AttributeError, TypeError),  # what the unpickler stumbles over in a file that is no pickle
)
OWN_PREFIX = "network."
"""Where our own autoencoder keeps diffusers' network."""


@dataclass(frozen=True)
class AutoencoderWeights:
    """An autoencoder's tensors.

    Args:
        source: where they are from, for messages.
        layout: `diffusers`, `ldm` or `simflow`, as found.
        state: tensors by diffusers' names.
        shift: (C,) or scalar, of the raw latents; None if unknown.
        scale: (C,) or scalar: latents = (raw - shift) * scale; None if unknown.
        head: state of the posterior head, in our own layout; empty for most.
    """

    source: str
    layout: str
    state: dict[str, Tensor]
    shift: Tensor | None = None
    scale: Tensor | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a `.safetensors`, `.pt`, `.ckpt` or `.bin` file, nested names joined by dots.

    Raises:
        WeightsError: if there is no such file, it is torn, or it holds objects other than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors{_refused_class(error)}, or is torn. Python objects are not "
            "loaded from checkpoints; save the state dict alone, as safetensors"
        ) from error
    except UNREADABLE as error:
        raise WeightsError(
            f"{path}: cannot be read, perhaps torn: {_first_line(error)}; fetch it again"
        ) from error
    return dict(_flatten("", content))


def read_autoencoder(path: Path) -> AutoencoderWeights:
    """Read the autoencoder in a checkpoint file of any known layout.

    Raises:
        WeightsError: if the file cannot be read, or holds no autoencoder, or more than one.
    """
    tensors = read_tensors(path)
    prefixes = [name.removesuffix(ANCHOR) for name in tensors if name.endswith(ANCHOR)]
    # Adversarial training checkpoints carry other encoders as well; an autoencoder has a decoder.
    prefixes = [prefix for prefix in prefixes if f"{prefix}decoder.conv_in.weight" in tensors]
    if len(prefixes) != 1:
        found = (
            f"under {', '.join(repr(p) for p in prefixes)}" if prefixes else f"names like {_some(tensors)}"
        )
        raise WeightsError(
            f"{path}: expected one autoencoder ({ANCHOR} and decoder.conv_in.weight under one prefix), found "
            f"{len(prefixes)}, {found}. Name a file that holds the autoencoder's state dict"
        )
    prefix = prefixes[0]
    state = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(tuple(prefix + part for part in PARTS))
    }
    if is_ldm(state):
        shift, scale = _repa_e_statistics(path)
        return AutoencoderWeights(str(path), "ldm", ldm_to_diffusers(state), shift, scale)
    if not prefix.endswith(OWN_PREFIX):
        return AutoencoderWeights(str(path), "diffusers", state)
    own = prefix.removesuffix(OWN_PREFIX)
    shift, scale = tensors.get(f"{own}latent_shift"), tensors.get(f"{own}latent_scale")
    start = f"{own}head."
    head = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    return AutoencoderWeights(str(path), "simflow", state, shift, scale, head)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`, every tensor of both or none.

    Raises:
        WeightsError: if names or shapes differ; names the file and the first of them.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    findings = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    if any(names for _, names in findings):
        summary = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in findings if names)
        raise WeightsError(
            f"{source}: weights of another architecture, or torn: of {len(expected)} tensors {summary}. "
            "Check the options that shape the network against the file, or name another one"
        )
    module.load_state_dict(state)


def _repa_e_statistics(path: Path) -> tuple[Tensor | None, Tensor | None]:
    """Return (shift, scale) from the `NAME-latents-stats.pt` that the REPA-E host keeps beside `NAME.pt`."""
    beside = path.with_name(f"{path.stem}-latents-stats.pt")
    if not beside.is_file():
        return None, None
    tensors = read_tensors(beside)
    if not {"latents_bias", "latents_scale"} <= set(tensors):
        raise WeightsError(f"{beside}: expected latents_scale and latents_bias, found {_some(tensors)}")
    return tensors["latents_bias"].flatten(), tensors["latents_scale"].flatten()


def _flatten(prefix: str, content: Any) -> Iterable[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flatten(f"{prefix}.{name}" if prefix else str(name), value)


def _some(names: Iterable[str], limit: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "") if listed else "(none)"


def _refused_class(error: Exception) -> str:
    """Return ` (name of the class)` of what torch refused to unpickle, as far as its message tells."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({found[1]})" if found else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
