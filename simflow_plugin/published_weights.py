"""Published weights by short name: where they come from, where they are kept, and what their checksum is known from.

Two kinds: a file at an address, kept in torch's hub cache, whose name ends in the first digits of its SHA-256; and a
file of a repository on the Hub, kept in its cache, whose SHA-256 the Hub states when it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

TORCHVISION = "https://download.pytorch.org/models/"
HUB_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""Names that a repository of the Hub may give to weights, those without pickles first."""
MODEL_BY_PRESET = {
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
    "dinov2-b-reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2-l-reg": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov3-b": "vit_base_patch16_dinov3.lvd1689m",
    "mae-b": "vit_base_patch16_224.mae",
    "mae-l": "vit_large_patch16_224.mae",
    "clip-l": "vit_large_patch14_clip_quickgelu_224.openai",
}
"""timm's name of each published encoder by its short name, for alignment."""


@dataclass(frozen=True)
class FileAtAddress:
    """One file on the web.

    Args:
        address: its name ends in 8 hexadecimal digits, the start of the file's SHA-256.
        serves: what it is needed for.
    """

    address: str
    serves: str

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.address).name

    @property
    def sha256_prefix(self) -> str:
        """The first 8 hexadecimal digits of the SHA-256, from the published name."""
        return PurePosixPath(self.address).stem[-8:]


@dataclass(frozen=True)
class FileOnHub:
    """The weights of a timm model in its repository on the Hub.

    Args:
        model: name in timm, with its tag.
        serves: what they are needed for.
    """

    model: str
    serves: str


LPIPS_BACKBONES = {
    "alex": FileAtAddress(f"{TORCHVISION}alexnet-owt-7be5be79.pth", "LPIPS as a metric (AlexNet)"),
    "vgg": FileAtAddress(f"{TORCHVISION}vgg16-397923af.pth", "LPIPS as a loss (VGG-16)"),
}
_ALIGNMENT = "alignment.encoder; --extractor"
PUBLISHED: dict[str, FileAtAddress | FileOnHub] = {
    "inception": FileAtAddress(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "FID, KID, IS, precision and recall",
    ),
    "lpips": LPIPS_BACKBONES["alex"],
    "lpips-vgg": LPIPS_BACKBONES["vgg"],
    "dinov2-s": FileOnHub("vit_small_patch14_dinov2.lvd142m", "--extractor"),
    "dinov2-g": FileOnHub("vit_giant_patch14_dinov2.lvd142m", "--extractor"),
    **{name: FileOnHub(model, _ALIGNMENT) for name, model in MODEL_BY_PRESET.items()},
}


def torch_cache() -> Path:
    """Return the folder of torch's hub cache for weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def hub_file_names(config: Any) -> list[str]:
    """Return the names that the weights of a timm model's configuration may have on the Hub, in order."""
    own = [config.hf_hub_filename] if config.hf_hub_filename else []
    return own + [name for name in HUB_FILES if name not in own]


def cached_hub_file(config: Any) -> Path | None:
    """Return the weights of a timm model's configuration in the cache of the Hub, without a network."""
    from huggingface_hub import try_to_load_from_cache

    for name in hub_file_names(config) if config.hf_hub_id else []:
        found = try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch_command(file_name_or_model: str) -> str:
    """Return ' `simflow fetch NAME` fetches them.' for a file or a timm model of the table, else nothing."""
    for name, entry in PUBLISHED.items():
        known = entry.file_name if isinstance(entry, FileAtAddress) else entry.model
        if known == file_name_or_model:
            return f" `simflow fetch {name}` fetches them."
    return ""
