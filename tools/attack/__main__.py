"""Damaged and hostile inputs, tried through the command line: a table of groups, tried and survived.

    python -m tools.attack                       # this checkout
    python -m tools.attack --package ../before   # another one, to compare

An input is survived when the command ends in time with a documented status (0, 2 or 3), without a traceback and without
having run anything that the input smuggled in, and when a status of 0 stands for the right result: the bytes that the
undamaged input gives, where there are any. Deterministic by `--seed`. Everything happens in a temporary folder; a C++
compiler is needed for the group `kernel`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.attack.checkpoints import attack_checkpoints
from tools.attack.configurations import attack_configurations
from tools.attack.full_disk import attack_disk
from tools.attack.images import attack_images
from tools.attack.kernel_cache import attack_kernel
from tools.attack.not_finite import attack_numbers
from tools.attack.plugins import attack_plugins
from tools.attack.target import TINY, Attack, Target


@dataclass
class Outcome:
    """Count of inputs of one group, and one line for each that did not survive."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)


GROUPS: dict[str, Callable[[Target, random.Random], Attack]] = {
    "kernel": attack_kernel,
    "checkpoints": attack_checkpoints,
    "configurations": attack_configurations,
    "plugins": attack_plugins,
    "numbers": attack_numbers,
    "disk": attack_disk,
    "images": attack_images,
}


def main() -> int:
    """Attack a checkout; print the table and the inputs that it did not survive; return 1 if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, default=Path(__file__).parents[2], help="checkout to attack")
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="simflow-attack-") as work:
        target = Target(options.package.resolve(), Path(work))
        status, text = target.simflow("train", *TINY, "--no-report", "--out", target.run)
        if status != 0:
            print(f"the undamaged run failed with status {status}:\n{text}", file=sys.stderr)
            return 1
        for group in options.groups:
            outcome = outcomes.setdefault(group, Outcome())
            for name, wrong in GROUPS[group](target, random.Random(f"{options.seed} {group}")):
                outcome.tried += 1
                if wrong is not None:
                    outcome.failures.append(f"{group}: {name}: {wrong}")
                    print(outcome.failures[-1], file=sys.stderr, flush=True)
    print("| group | tried | survived |\n|---|---|---|")
    for group, outcome in outcomes.items():
        print(f"| {group} | {outcome.tried} | {outcome.tried - len(outcome.failures)} |")
    return 1 if any(outcome.failures for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
