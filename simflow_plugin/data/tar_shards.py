"""Locations of tar shards: local paths, globs, brace ranges, addresses fetched to a cache."""

from __future__ import annotations

import glob
import re
import subprocess
import time
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from simflow_plugin.errors import DataError
from simflow_plugin.fetching import download
from simflow_plugin.files import replacing, text_digest

ADDRESS = re.compile(r"^(https?|file|pipe):")
PIPE = "pipe:"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 1_000_000
ATTEMPTS = 3
PARALLEL_DOWNLOADS = 8


def expand_range(pattern: str) -> list[str]:
    """Expand `a-{000..002}.tar` to a-000.tar, a-001.tar, a-002.tar; numbers keep their width."""
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if max(len(first), len(last)) > 9 or int(last) - int(first) >= MOST_SHARDS:
        raise DataError(f"{pattern}: a range of more than {MOST_SHARDS} shards. Write {{0000..0012}}, say.")
    before, after = pattern[: match.start()], pattern[match.end() :]
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in expand_range(before + number + after)]


def local_shards(shards: Sequence[str], cache: Path, allows_pipes: bool = False) -> list[Path]:
    """Return the paths of all shards, in the order given; addresses are fetched to `cache` first.

    Args:
        shards: paths, globs, or addresses (http, https, file, `pipe:command` whose output is the shard).
        cache: folder for what is fetched.
        allows_pipes: whether commands may run; their output is kept, and needs no command the next time.
    Raises:
        DataError: if one is missing, or cannot be fetched in 3 attempts, or a command would run that nobody allowed.
    """
    names = [name for pattern in shards for name in expand_range(pattern)]
    paths: list[Path] = []
    addresses = [name for name in names if ADDRESS.match(name)]
    for address in addresses:
        if address.startswith(PIPE) and not allows_pipes and not _copy_of(address, cache).is_file():
            raise DataError(
                f"{address}: runs a command in a shell. A configuration alone never does: read it, and if you trust "
                "it, run `simflow train` with --allow-pipes. What it fetched is kept, and read without."
            )
    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        fetched = dict(
            zip(addresses, pool.map(lambda address: fetch(address, cache), addresses), strict=True)
        )
    for name in names:
        found = [str(fetched[name])] if name in fetched else sorted(glob.glob(str(Path(name).expanduser())))
        if not found:
            raise DataError(
                f"{name}: no such shard. Set data.shards to paths, a glob, or addresses of tar files."
            )
        paths += map(Path, found)
    if not paths:
        raise DataError("data.shards is empty. Set it to paths, a glob, or addresses of tar files.")
    return paths


def _copy_of(address: str, cache: Path) -> Path:
    return cache / "shards" / f"{text_digest(address)}.tar"


def fetch(address: str, cache: Path) -> Path:
    """Return the local copy of `address`, fetching it if there is none.

    Raises:
        DataError: with the last failure.
    """
    path = _copy_of(address, cache)
    if path.is_file():
        return path
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt**2)  # a server that is busy is given some seconds
        try:
            with replacing(path, DataError) as part:
                if address.startswith(PIPE):
                    _run(address[len(PIPE) :], part)
                else:
                    download(address, part)
            return path
        except urllib.error.HTTPError as error:
            failure = error
            if 400 <= error.code < 500:
                raise DataError(f"{address}: cannot be fetched: {error}. Is the address right?") from error
        except (DataError, ValueError, urllib.error.URLError) as error:
            failure = error
    raise DataError(f"{address}: cannot be fetched ({ATTEMPTS} attempts): {failure}")


def _run(command: str, target: Path) -> None:
    with open(target, "wb") as file:
        done = subprocess.run(command, shell=True, stdout=file, stderr=subprocess.PIPE)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()[-300:]
        raise OSError(f"exit status {done.returncode}: {reason}")
