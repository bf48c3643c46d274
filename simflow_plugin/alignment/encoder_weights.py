"""Pretrained weights of a timm network, from a path, a local cache or a package; nothing is downloaded.

Nothing is downloaded: without a network that would end in minutes of retries.
"""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from simflow_plugin.alignment.backbone_package import find_packaged_weights, is_packaged, rename_packaged
from simflow_plugin.errors import WeightsError
from simflow_plugin.published_weights import cached_hub_file, fetch_command, torch_cache
from simflow_plugin.weights import load_strictly, read_tensors

CHECKPOINT_OPTION = "alignment.encoder.checkpoint"
NESTED_WEIGHTS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep the weights in a file that holds more."""
UNUSED_PREFIXES = ("head", "fc_norm", "mask_token", "decoder", "attn_pool")
"""Parts of a published checkpoint that patch features do not need: classifier, MAE's decoder, ..."""


def find_weights(model: str, checkpoint: str | None, option: str = CHECKPOINT_OPTION) -> Path:
    """Return the file that holds the weights of timm's `model`.

    Args:
        model: name in timm.
        checkpoint: path as configured, or None to look into the caches of Hugging Face and torch, then for an
            installed package that holds them.
        option: that sets the path, for messages.
    Raises:
        WeightsError: with the file, the option and the address.
    """
    import timm

    if checkpoint is not None:
        path = Path(checkpoint).expanduser()
        if path.is_file():
            return path
        raise WeightsError(f"{path}: no such file ({option}). {published_at(model)}")
    found = _cached_file(timm.get_pretrained_cfg(model)) or find_packaged_weights(model)
    if found is not None:
        return found
    raise WeightsError(
        f"the weights of {model} are not on this machine.{fetch_command(model)} Or set {option} to their file "
        f"(safetensors or .pth), or put them into the local cache. {published_at(model)}"
    )


def load_weights(network: nn.Module, path: Path, option: str = CHECKPOINT_OPTION) -> None:
    """Load a checkpoint into a timm network; position embeddings are resampled to the network's grid.

    timm's own reader is not used: in timm 1.0.9, the oldest we run with, it unpickles whatever the file holds unless
    told otherwise, and tries again without that protection if the first attempt ends in a TypeError.

    Args:
        network: with or without its classifier.
        path: of the file.
        option: that sets the path, for messages.
    Raises:
        WeightsError: if the file is damaged, or of another architecture, naming keys or shapes.
    """
    remedy = f"Choose the network that the file belongs to, or another file ({option})."
    state = read_tensors(path, NESTED_WEIGHTS)
    if is_packaged(state):
        state = rename_packaged(state, network)
    # Each timm family knows the layouts its weights were published in, and resamples position embeddings.
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        converted: dict[str, Tensor] = convert(state, network) if convert is not None else state
    except Exception as error:  # resampling stumbles over tensors of another architecture in many ways
        raise WeightsError(
            f"{path}: not the weights of {type(network).__name__} as configured: {error}. {remedy}"
        ) from error
    own = network.state_dict()
    unused = (*UNUSED_PREFIXES, *classifier_prefixes(network))
    needed = {k: v for k, v in converted.items() if k in own or not k.startswith(unused)}
    load_strictly(network, needed, str(path), remedy)


def classifier_prefixes(network: nn.Module) -> tuple[str, ...]:
    """Return the beginnings of the names of a timm network's classifier, which a network for features lacks."""
    named = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))


def published_at(model: str) -> str:
    """Return a sentence with the addresses of the weights of timm's `model`."""
    import timm

    config = timm.get_pretrained_cfg(model)
    hub, url = (config.hf_hub_id, config.url) if config is not None else (None, None)
    places = ([f"https://huggingface.co/{hub}"] if hub else []) + ([str(url)] if url else [])
    return f"Published at {' and at '.join(places)}." if places else "timm knows no published weights for it."


def _cached_file(config: Any) -> Path | None:
    """Look into the caches of Hugging Face and torch.hub, without a network."""
    if config is None:
        return None
    found = cached_hub_file(config)
    if found is None and config.url:
        path = torch_cache() / PurePosixPath(config.url).name
        return path if path.is_file() else None
    return found
