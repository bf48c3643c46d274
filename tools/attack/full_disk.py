"""Files that cannot be written in full."""

from __future__ import annotations

import random
import shutil

from tools.attack.target import Attack, Target, verdict


def attack_disk(target: Target, rng: random.Random) -> Attack:
    """Files that cannot be written in full: status 3, and nothing half-written stays."""
    for limit in (None, 200, 2000, 20_000):
        run = target.work / "full"
        shutil.copytree(target.run, run)
        out = target.work / "half"
        for command in (
            ("evaluate", run, "--only", "likelihood", "--num-held-out", "8"),
            ("analyze", run),
            ("export", run, "--out", out),
            ("sample", run, "--num", "4", "--out", out / "samples"),
        ):
            status, text = target.simflow(*command, file_limit=limit)
            left = [*run.rglob("*.tmp*"), *(path for path in out.rglob("*") if path.is_file())]
            wrong = verdict(status, text, allowed=(0,) if limit is None else (0, 3))
            if wrong is None and status == 3 and left:
                wrong = f"left {left[0].name}"
            yield f"{'no limit' if limit is None else f'{limit} bytes'}: {command[0]}", wrong
            shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(run)
