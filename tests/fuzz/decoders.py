"""Feed damaged image files to the decoder by hand: python -m tests.fuzz.decoders --count 500000.

The suite runs some 4,000 of them (`test_decoders.py`). This prints how many were decoded, how many refused as
corrupt, by which error, and names the first file (written to --keep) for which anything else came out.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from simflow_plugin.data.decoding import CorruptImage, decode_image
from simflow_plugin.data.pixels import center_crop
from tests.fuzz.mutations import mutants, seed_files

SIZE = 16


def outcome(content: bytes) -> str:
    """Decode and crop as the loader does; return 'decoded' or the name of the error that was refused by name."""
    try:
        image = center_crop(decode_image(content, "mutant", SIZE), SIZE)
    except CorruptImage as error:
        return type(error.__cause__).__name__
    assert image.shape == (3, SIZE, SIZE)
    return "decoded"


def run(count: int, seed: int, keep: Path | None = None) -> dict[str, Counter[str]]:
    """Return the outcomes by kind of file of `count` mutants, dealt evenly over the kinds."""
    seeds = seed_files()
    outcomes: dict[str, Counter[str]] = {}
    for number, (name, content) in enumerate(seeds.items()):
        outcomes[name] = Counter()
        for damaged in mutants(content, -(-count // len(seeds)), np.random.default_rng([seed, number])):
            if keep is not None:  # a decoder that kills the process leaves the file that did it
                (keep / f"{name}.last").write_bytes(damaged)
            outcomes[name][outcome(damaged)] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="folder for the file that is being decoded")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    outcomes = run(arguments.count, arguments.seed, arguments.keep)
    for name, counts in outcomes.items():
        print(
            f"{name:14} {sum(counts.values()):8,}  " + ", ".join(f"{k} {n}" for k, n in counts.most_common())
        )
    total = sum(sum(counts.values()) for counts in outcomes.values())
    print(f"{total:,} files of {len(outcomes)} kinds in {time.monotonic() - started:.0f} s, nothing escaped")


if __name__ == "__main__":
    main()
