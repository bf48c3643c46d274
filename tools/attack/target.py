"""A checkout under attack, its commands, and what counts as survived."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

TIME_LIMIT = 100
DOCUMENTED = (0, 2, 3)
MARKER = "attack-marker"
TINY = ["quickstart", "--set", "training.steps=2", "--set", "optimizer.warmup_steps=1"]
TINY += ["--set", "training.sample_every=2", "--set", "training.checkpoint_every=2"]


@dataclass
class Target:
    """A checkout under attack.

    Attributes:
        package: folder that holds `simflow_plugin/`.
        work: folder for everything that the attack writes.
        run: a finished run of two steps.
    """

    package: Path
    work: Path

    @property
    def run(self) -> Path:
        return self.work / "run"

    def simflow(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        path: Path | None = None,
        file_limit: int | None = None,
    ) -> tuple[int | str, str]:
        """Run a command and return its status ("time limit", or negative for a signal) and its output.

        Args:
            path: put before the package on PYTHONPATH, for planted distributions.
            file_limit: bytes, the largest file that the command can write.
        """
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(p) for p in (path, self.package) if p),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(self.work / "cache"),
            **(env or {}),
        }
        limit = (
            (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit)))
            if file_limit
            else None
        )
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "simflow_plugin", *map(str, arguments)],
                cwd=cwd or self.work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIME_LIMIT,
                preexec_fn=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "time limit", ""
        return ended.returncode, ended.stdout.decode(errors="replace")

    def samples(self, run: Path, name: str, **options: object) -> tuple[int | str, str, str]:
        """Draw four samples; return status, output and the digest of the drawn pixels ("" without any)."""
        out = self.work / "samples" / name
        shutil.rmtree(out, ignore_errors=True)
        status, text = self.simflow("sample", run, "--num", "4", "--seed", "1", "--out", out, **options)  # type: ignore[arg-type]
        digest = hashlib.sha256()
        images = sorted(out.rglob("*.png")) if out.exists() else []
        for image in images:
            digest.update(np.asarray(Image.open(image)).tobytes())
        return status, text, digest.hexdigest() if images else ""


def verdict(status: int | str, text: str, *, allowed: tuple[int, ...] = DOCUMENTED) -> str | None:
    """Return why a command did not survive its input, or None."""
    if status not in allowed:
        last = text.strip().splitlines()[-1][:120] if text.strip() else "no output"
        return f"status {status}: {last}"
    if "Traceback (most recent call last)" in text:
        return "traceback"
    if status != 0 and not text.strip():
        return "no message"
    return None


Attack = Iterator[tuple[str, str | None]]
