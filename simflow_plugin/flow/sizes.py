"""Named sizes and families of the flow: the only place where their numbers are written."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "S": {"width": 384, "layers_per_block": (2, 2, 2, 8), "head_dim": 64},  # 25 M parameters
    "B": {"width": 768, "layers_per_block": (2, 2, 2, 12), "head_dim": 64},  # 129 M
    "L": {"width": 1024, "layers_per_block": (2, 2, 2, 2, 14), "head_dim": 64},  # 278 M
    "XL": {"width": 1536, "layers_per_block": (2, 2, 2, 2, 2, 18), "head_dim": 64},  # 0.8 B
    # STARFlow's on ImageNet (arXiv:2506.06276), not SimFlow's.
    "XXL": {"width": 2048, "layers_per_block": (2, 2, 2, 2, 2, 18), "head_dim": 64},  # 1.4 B
    # SimFlow's on ImageNet (arXiv:2512.04084). Read in the authors' command: width 1152, 6 blocks, and the run name
    # `simflow_adaln_2222246`. Inferred: the layers from that name's digits; six vectors in every layer, which come
    # nearest to the paper's 1.4 B (four: 1.2 B); heads of 64 as in STARFlow.
    "simflow-xxl": {
        "width": 1152,
        "layers_per_block": (2, 2, 2, 2, 2, 46),
        "head_dim": 64,
        "class_conditioning": "adaln",
        "adaln_gates": True,
        "conditional_blocks": "all",
    },  # 1.35 B
    # The SimFlow-L of 475 M that MIMFlow measured (arXiv:2606.26016). Read: 475 M, 256 tokens. Inferred: the flow of
    # MIMFlow-L's public configuration (a TarFlow with labels in every block), with the gates that its paper adds.
    "simflow-l": {
        "family": "tarflow",
        "width": 1024,
        "layers_per_block": (2, 2, 2, 2, 2, 2, 2, 20),
        "head_dim": 64,
        "gated_attention": True,
    },  # 475 M with 256 tokens of 64 channels
}
"""Blocks are in training order: the shallow ones first, the deep one last. A size may fill in more than sizes."""

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
"""Defaults of a family, where the user wrote nothing."""
