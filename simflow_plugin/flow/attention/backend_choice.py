"""Choice of the backend: xformers on CUDA where its build works, else sdpa; the choice and its reason are logged."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.attention.backend import AttentionContext
from simflow_plugin.flow.attention.sdpa import SdpaAttention
from simflow_plugin.flow.attention.xformers import XformersAttention
from simflow_plugin.registry import ATTENTION

logger = logging.getLogger(__name__)


@ATTENTION.register("auto")
class AutoAttention:
    """See `AttentionBackend`. CPU tensors always go to sdpa, since a flow may be built before it is moved."""

    def __init__(self, context: AttentionContext) -> None:
        self.sdpa = SdpaAttention(context)
        self.xformers: XformersAttention | None = None
        reason = why_not_xformers(context)
        if reason is None:
            self.xformers = XformersAttention(context)
        _say("xformers" if reason is None else "sdpa", reason or "its build works on this CUDA device")

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        backend = self.xformers if self.xformers is not None and queries.is_cuda else self.sdpa
        return backend(queries, keys, values)


def why_not_xformers(context: AttentionContext) -> str | None:
    """Return why xformers cannot be used here, or None if it can: it is tried on a few numbers."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        backend = XformersAttention(context)
        probe = torch.zeros(1, 1, 2, context.head_dim, device="cuda", dtype=torch.float16)
        backend(probe, probe, probe)
    except ConfigError as error:
        return str(error)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # no kernel for this device or head size
        return f"xformers has no kernel here ({error})"
    return None


@functools.cache  # one line per outcome, not one per flow
def _say(name: str, reason: str) -> None:
    logger.info("attention: auto picked %s: %s", name, reason)
