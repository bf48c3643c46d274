"""Attention backends by name: `sdpa` (default), `xformers`, and `auto`, which picks between them."""

from simflow_plugin.flow.attention.backend import AttentionBackend, AttentionContext, build_attention

__all__ = ["AttentionBackend", "AttentionContext", "build_attention"]
