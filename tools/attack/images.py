"""Damaged image files."""

from __future__ import annotations

import random
import shutil

import numpy as np
from PIL import Image

from tools.attack.target import TINY, Attack, Target, verdict


def attack_images(target: Target, rng: random.Random) -> Attack:
    """Image files with flipped bytes among good ones; a run must skip what it cannot decode, and say how many."""
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"):
        for index in range(3):
            folder = target.work / "images"
            for number in range(24):
                path = folder / "train" / str(number % 2) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
            bad = folder / "train" / "0" / f"bad.{suffix}"
            Image.fromarray(pixels).save(bad)
            data = bytearray(bad.read_bytes())
            for _ in range(4):
                data[rng.randrange(len(data))] = rng.randrange(256)
            bad.write_bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
            status, text = target.simflow(
                "train", *TINY, "--no-report", "--out", target.work / "pictures", "--set", "data.name=image_folder",
                "--set", f"data.root={folder}", "--set", "data.max_corrupt_share=0.2",
                "--set", "training.batch_size=4", "--set", "evaluation.judge=none",
            )  # fmt: skip
            yield f"{suffix} {index}", verdict(status, text, allowed=(0,))
            shutil.rmtree(folder)
            shutil.rmtree(target.work / "pictures", ignore_errors=True)
