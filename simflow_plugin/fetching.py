"""Fetching published weights into the usual caches: looked for there, asked for, fetched, and checked.

A file at an address appears in torch's cache only when it is whole and has its checksum. A file of the Hub is fetched
by huggingface_hub, which puts it into its own cache when it is whole; its checksum is compared afterwards, and a file
that has another is removed.
"""

from __future__ import annotations

import http.client
import re
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from simflow_plugin.errors import WeightsError
from simflow_plugin.files import file_digest, replacing
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.published_weights import (
    FileAtAddress,
    FileOnHub,
    cached_hub_file,
    hub_file_names,
    torch_cache,
)

SECONDS = 30
"""Until a silent server is given up."""
SHA256 = re.compile(r"[0-9a-f]{64}")
AGAIN = "Run the command again; where the network forbids it, fetch the file elsewhere and copy it there."


@dataclass(frozen=True)
class Offer:
    """One file as its source describes it.

    Args:
        source: address.
        size: bytes, or None if the server does not state it.
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


def find(entry: FileAtAddress | FileOnHub) -> Path | None:
    """Return weights that are in their cache, whole and with their checksum, without a network; None otherwise.

    The cache of the Hub names a file by the SHA-256 that the Hub stated, where its file system has links.
    """
    if isinstance(entry, FileAtAddress):
        path = torch_cache() / entry.file_name
        return path if path.is_file() and file_digest(path).startswith(entry.sha256_prefix) else None
    import timm

    config = timm.get_pretrained_cfg(entry.model)
    found = None if config is None else cached_hub_file(config)
    stated = "" if found is None else found.resolve().name
    return found if found is not None and SHA256.fullmatch(stated) and file_digest(found) == stated else None


def ask(entry: FileAtAddress | FileOnHub, endpoint: str | None = None) -> Offer:
    """Ask the source of some weights for size and checksum.

    Args:
        entry: of `PUBLISHED`.
        endpoint: of the Hub; None is the usual one.
    Raises:
        WeightsError: if the source cannot be reached, or has no such file.
    """
    return _ask_address(entry) if isinstance(entry, FileAtAddress) else _ask_hub(entry, endpoint)


def fetch(offer: Offer, endpoint: str | None = None) -> Path:
    """Fetch what a source offers, unless it is there, whole and with its checksum.

    Returns:
        The file, in torch's hub cache or in that of the Hub.
    Raises:
        WeightsError: if it does not arrive, or does not have its checksum, as far as one is known; nothing that is
            wrong is left under its name then.
    """
    return _fetch_from_hub(offer, endpoint) if offer.repository else _fetch_from_address(offer)


def _ask_address(entry: FileAtAddress) -> Offer:
    request = urllib.request.Request(entry.address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            size = answer.headers.get("Content-Length")
    except (OSError, ValueError, http.client.HTTPException) as error:  # HTTPError and URLError are OSErrors
        raise WeightsError(f"{entry.address}: cannot be reached: {_reason(error)}. {AGAIN}") from error
    return Offer(entry.address, int(size) if size else None, entry.sha256_prefix, file_name=entry.file_name)


def _fetch_from_address(offer: Offer) -> Path:
    path = torch_cache() / offer.file_name
    if path.is_file() and file_digest(path).startswith(offer.sha256):
        return path
    nothing = nullcontext(lambda count: None)
    bar = count_progress(f"fetching {offer.file_name} (bytes)", offer.size) if offer.size else nothing
    try:
        with replacing(path) as part:
            with bar as advance:
                download(offer.source, part, advance)
            if not (digest := file_digest(part)).startswith(offer.sha256):
                raise WeightsError(
                    f"{offer.source}: what arrived is another file: {part.stat().st_size} bytes with SHA-256 {digest}, "
                    f"expected {offer.sha256}... It was removed. {AGAIN}"
                )
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"{offer.source}: cannot be fetched to {path}: {_reason(error)}. {AGAIN}"
        ) from error
    return path


def download(address: str, target: Path, advance: Callable[[int], None] = lambda count: None) -> None:
    """Write what an address sends to a file.

    Args:
        address: http, https or file.
        target: written over.
        advance: called with the number of bytes of each piece.
    Raises:
        OSError: if the server refuses, is silent for `SECONDS`, or sends less than it promised.
    """
    with urllib.request.urlopen(address, timeout=SECONDS) as answer, target.open("wb") as file:
        while chunk := answer.read(1 << 20):
            file.write(chunk)
            advance(len(chunk))
        promised = answer.headers.get("Content-Length")
    if promised is not None and int(promised) != target.stat().st_size:
        raise OSError(f"cut off: {target.stat().st_size} bytes arrived of {promised}")


def _ask_hub(entry: FileOnHub, endpoint: str | None) -> Offer:
    import timm
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    config = timm.get_pretrained_cfg(entry.model)
    if config is None or not config.hf_hub_id:
        raise WeightsError(
            f"timm {timm.__version__} knows no repository on the Hub with the weights of {entry.model}."
        )
    names = hub_file_names(config)
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
