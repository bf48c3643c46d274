"""Attention backends by name: `sdpa` (default), `xformers`, and `auto`, which picks between them."""

from simflow_plugin.flow.attention.backend import AttentionBackend, AttentionContext

__all__ = ["AttentionBackend", "AttentionContext"]
