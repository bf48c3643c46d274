"""Fetching published weights into the usual caches: asked first, by torch.hub or huggingface_hub, checked before use.

A file appears under its name only when it is whole and has its checksum; what was torn off is never read.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simflow_plugin.errors import WeightsError
from simflow_plugin.files import file_digest
from simflow_plugin.published_weights import FileAtAddress, FileOnHub

SECONDS = 30
"""Until a server that says nothing is given up."""
SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
AGAIN = "Run the command again; where the network forbids it, fetch the file elsewhere and copy it there."


@dataclass(frozen=True)
class Offer:
    """One file as its source describes it.

    Args:
        source: address.
        size: bytes, or None if the server does not say.
        sha256: 64 hexadecimal digits, or as many as are known from the start; empty if none are.
        repository, file_name: on the Hub; empty for a file at an address.
    """

    source: str
    size: int | None
    sha256: str
    repository: str = ""
    file_name: str = ""

    def describe(self) -> str:
        """Return source, size and checksum as one line."""
        size = "size unknown" if self.size is None else f"{self.size / 1e6:.1f} MB"
        digits = f"SHA-256 {self.sha256}{'...' if len(self.sha256) < 64 else ''}"
        return f"{self.source}, {size}, {digits if self.sha256 else 'no checksum known'}"


def ask(entry: FileAtAddress | FileOnHub, endpoint: str | None = None) -> Offer:
    """Ask the source of some weights for size and checksum.

    Args:
        entry: of `PUBLISHED`.
        endpoint: of the Hub; None is the usual one.
    Raises:
        WeightsError: if the source cannot be reached, or has no such file.
    """
    return _ask_address(entry) if isinstance(entry, FileAtAddress) else _ask_hub(entry, endpoint)


def fetch(offer: Offer, endpoint: str | None = None, progress: bool = True) -> Path:
    """Fetch what a source offers, unless it is there, whole and with its checksum.

    Returns:
        The file, in torch's hub cache or in that of the Hub.
    Raises:
        WeightsError: if it does not arrive, or is not what its checksum says; nothing is left of it then.
    """
    return _fetch_from_hub(offer, endpoint) if offer.repository else _fetch_from_address(offer, progress)


def torch_cache() -> Path:
    """Return the folder of torch's hub cache for weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _ask_address(entry: FileAtAddress) -> Offer:
    request = urllib.request.Request(entry.address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            size = answer.headers.get("Content-Length")
    except (OSError, ValueError) as error:  # HTTPError and URLError are OSErrors
        raise WeightsError(f"{entry.address}: cannot be reached: {_reason(error)}. {AGAIN}") from error
    return Offer(entry.address, int(size) if size else None, entry.sha256_prefix, file_name=entry.file_name)


def _fetch_from_address(offer: Offer, progress: bool) -> Path:
    from torch.hub import download_url_to_file

    path = torch_cache() / offer.file_name
    if path.is_file() and file_digest(path).startswith(offer.sha256):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(offer.source, str(path), hash_prefix=offer.sha256, progress=progress)
    except RuntimeError as error:
        raise WeightsError(
            f"{offer.source}: what arrived was cut off or is another file: {error}. It was removed. {AGAIN}"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{offer.source}: cannot be fetched to {path}: {_reason(error)}. {AGAIN}"
        ) from error
    return path


def _ask_hub(entry: FileOnHub, endpoint: str | None) -> Offer:
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    config: Any = timm.get_pretrained_cfg(entry.model)
    if config is None or not config.hf_hub_id:
        raise WeightsError(
            f"timm {timm.__version__} knows no repository on the Hub with the weights of {entry.model}."
        )
    names = ([config.hf_hub_filename] if config.hf_hub_filename else []) + list(HUB_FILES)
    for name in names:
        address = hf_hub_url(config.hf_hub_id, name, endpoint=endpoint)
        try:
            found = get_hf_file_metadata(address, timeout=SECONDS, endpoint=endpoint)
        except EntryNotFoundError:
            continue
        except Exception as error:  # the library's own, its HTTP client's, and OSError
            raise WeightsError(f"{address}: cannot be reached: {_reason(error)}. {AGAIN}") from error
        etag = (found.etag or "").strip('"')
        return Offer(address, found.size, etag if SHA256.fullmatch(etag) else "", config.hf_hub_id, name)
    raise WeightsError(f"https://huggingface.co/{config.hf_hub_id}: holds none of {', '.join(names)}.")


def _fetch_from_hub(offer: Offer, endpoint: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(offer.repository, offer.file_name, endpoint=endpoint))
    except Exception as error:  # likewise; a download that was broken off goes on where it was
        raise WeightsError(f"{offer.source}: cannot be fetched: {_reason(error)}. {AGAIN}") from error
    digest = file_digest(path)
    if offer.sha256 and digest != offer.sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{offer.source}: what arrived has SHA-256 {digest}, and the Hub states {offer.sha256}. It was removed. "
            f"{AGAIN}"
        )
    return path


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
