"""Named sizes and families of the flow: the only place where their numbers are written."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "S": {"width": 384, "layers_per_block": (2, 2, 2, 8), "head_dim": 64},  # 25 M parameters
    "B": {"width": 768, "layers_per_block": (2, 2, 2, 12), "head_dim": 64},  # 129 M
    "L": {"width": 1024, "layers_per_block": (2, 2, 2, 2, 14), "head_dim": 64},  # 278 M
    "XL": {"width": 1536, "layers_per_block": (2, 2, 2, 2, 2, 18), "head_dim": 64},  # 0.8 B
    # The layout of STARFlow (arXiv:2506.06276) and SimFlow (arXiv:2512.04084) on ImageNet.
    "XXL": {"width": 2048, "layers_per_block": (2, 2, 2, 2, 2, 18), "head_dim": 64},  # 1.4 B
}
"""Blocks are listed in training order: the shallow ones first, the deep one last."""

FAMILIES: dict[str, dict[str, Any]] = {
    "starflow": {
        "positions": "rope",
        "start_token": True,
        "scale": "softplus",
        "class_conditioning": "token",
        "conditional_blocks": "deep",
        "null_label": "learned",
        "final_norm": True,
    },
    "tarflow": {
        "positions": "learned",
        "start_token": False,
        "scale": "exp",
        "class_conditioning": "add",
        "conditional_blocks": "all",
        "null_label": "mean",
        "final_norm": False,
    },
}
"""What a family fills in where the user wrote nothing."""
