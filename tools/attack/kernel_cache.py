"""The compiled step's cache."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tools.attack.damage import flip_bit
from tools.attack.target import MARKER, Attack, Target, verdict


def _planted_library(path: Path, marker: Path) -> None:
    """Compile a library that creates `marker` as soon as it is loaded."""
    code = f'#include <cstdio>\n__attribute__((constructor)) static void go() {{ fclose(fopen("{marker}", "w")); }}\n'
    subprocess.run(["c++", "-x", "c++", "-shared", "-fPIC", "-o", path, "-"], input=code.encode(), check=True)


def attack_kernel(target: Target, rng: random.Random) -> Attack:
    """The compiled step's cache: flipped bits, truncation, a planted library, a relative cache folder."""
    _, _, right = target.samples(target.run, "clean")
    clean = target.work / "cache"
    libraries = list(clean.rglob("*.so"))
    if not libraries:
        yield "compiled library", "none was built: a C++ compiler is needed"
        return
    library = libraries[0].relative_to(clean)

    def damaged(name: str, damage: Callable[[Path], None]) -> tuple[str, str | None]:
        cache = target.work / f"cache {name}"
        shutil.copytree(clean, cache)
        damage(cache / library)
        status, text, digest = target.samples(target.run, "damaged", env={"XDG_CACHE_HOME": str(cache)})
        shutil.rmtree(cache)
        wrong = verdict(status, text)
        return name, wrong or (None if digest in (right, "") else "other samples, in silence")

    for index in range(12):
        yield damaged(f"flipped bit {index}", lambda path: flip_bit(path, rng))
    for share in (0.0, 0.3, 0.9):
        yield damaged(
            f"cut to {share:.0%}",
            lambda path, share=share: os.truncate(path, int(share * path.stat().st_size)),
        )
    marker = target.work / f"{MARKER}-kernel"
    planted = target.work / "planted.so"
    _planted_library(planted, marker)

    def plant(path: Path) -> None:
        shutil.copy(planted, path)
        beside = path.with_name(path.name + ".sha256")
        if beside.exists():
            beside.write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")

    def of_another_user(path: Path) -> None:
        plant(path)
        os.chown(path, 65534, 65534)

    def open_to_all(
        path: Path,
    ) -> None:  # as an umask of 0 leaves folder and file: anybody may have written it
        plant(path)
        path.chmod(0o666)
        path.parent.chmod(0o777)

    for name, damage in (
        ("of another user", of_another_user),
        ("open to all", open_to_all),
    ):
        _, wrong = damaged(name, damage)
        yield name, "the planted library ran" if marker.exists() else wrong
        marker.unlink(missing_ok=True)
    elsewhere = target.work / "elsewhere"
    shutil.copytree(clean, elsewhere / "cache")
    plant(elsewhere / "cache" / library)
    status, text, _ = target.samples(target.run, "relative", cwd=elsewhere, env={"XDG_CACHE_HOME": "cache"})
    yield "relative cache folder", "the planted library ran" if marker.exists() else verdict(status, text)
