"""Run the quickstart for some minutes while faults are injected; then prove that nothing was lost.

    python tools/soak.py --minutes 30

Faults: SIGKILL, SIGTERM, a full disk, a flipped bit in the newest checkpoint, tensors left out of it under a checksum
that holds, lines in the log that are none, a lock file that is removed under the writer, a reader of the output that
dies, and images that are corrupt from the start. After each the same command is run again. At the end a run of the
same configuration without faults goes up to the last common checkpoint, and is compared bit for bit: weights,
averages, optimizer state, and every row of the log. A full disk is a small tmpfs where the user may mount one, else a
limit on file sizes (RLIMIT_FSIZE).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from simflow_plugin.config.loading import load_config
from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import RunDirectoryError, TrainingError
from simflow_plugin.files import file_digest
from simflow_plugin.registry import DATASETS
from simflow_plugin.runs.checkpoints import checkpoint_folders, latest_checkpoint, verify_checkpoint
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.training.interrupts import RESUME_EXIT_STATUS

NUM_CORRUPT = 5
CHECKPOINT_EVERY = 25
DISK = "96m"
FILE_LIMIT = 200_000
PATIENCE = 300
CLOCK_KEYS = ("seconds", "images_per_second")
FAULTS = (
    "SIGKILL",
    "SIGTERM",
    "full disk",
    "flipped bit",
    "left-out tensors",
    "bad log lines",
    "lock removed",
    "dead reader",
)
EXIT_STATUS = {
    "SIGKILL": -9,
    "flipped bit": -9,
    "left-out tensors": -9,
    "bad log lines": -9,
    "SIGTERM": RESUME_EXIT_STATUS,
    "dead reader": RESUME_EXIT_STATUS,
    "full disk": TrainingError.exit_status,
    "lock removed": RunDirectoryError.exit_status,
}


@dataclass
class Soak:
    """Folders and findings of one soak.

    Args:
        folder: of everything; its `disk` may be a small file system.
        moments: when faults come, and which.
        rows: of the table.
    """

    folder: Path
    moments: random.Random
    is_mounted: bool = False
    rows: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def config_file(self) -> Path:
        return self.folder / "soak.yaml"

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.folder / "disk" / "run")


def write_images(folder: Path) -> None:
    """Write the training digits as PNG files by class; the first few are truncated."""
    part = DATASETS.get("digits")
    images = part(part.Options(), DataContext(16, "train", 0))
    for index in range(len(images)):
        image, label = images[index]
        path = folder / "train" / str(int(label)) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        if index < NUM_CORRUPT:
            path.write_bytes(path.read_bytes()[:40])


def write_config(soak: Soak) -> None:
    """Write a quickstart that reads these images, goes on for ever, and saves often."""
    soak.config_file.write_text(
        "extends: quickstart\n"
        f"data: {{name: image_folder, root: {soak.folder / 'images'}}}\n"
        "training: {steps: 1000000, log_every: 5, sample_every: 1000000, "
        f"checkpoint_every: {CHECKPOINT_EVERY}, keep_checkpoints: 4, keep_every: null}}\n"
        "evaluation: {judge: none, num_samples: 0, num_likelihood: 0}\n"
    )
    load_config(str(soak.config_file))


def start(soak: Soak, out: Path, log: Path | None, file_limit: int | None = None) -> subprocess.Popen[bytes]:
    """Start training, its messages appended to `log`; None: to a pipe."""
    command = [
        sys.executable,
        "-m",
        "simflow_plugin.train",
        "--config",
        str(soak.config_file),
        "--out",
        str(out),
        "--no-report",
    ]

    def limit() -> None:
        assert file_limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    if log is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with log.open("ab") as messages:
        return subprocess.Popen(
            command, stdout=messages, stderr=messages, preexec_fn=limit if file_limit is not None else None
        )


def last_step(run: RunDirectory) -> int:
    """Return the last step in the log."""
    return max((row["step"] for row in run.read_metrics()), default=0)


def wait_for(process: subprocess.Popen[bytes], condition: Any) -> bool:
    """Return whether `condition` came true before the process ended or patience did."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def inject(soak: Soak, process: subprocess.Popen[bytes], fault: str) -> str:
    """Do the fault, wait for the process to end, and return how it ended."""
    ballast = soak.folder / "disk" / "ballast"
    if fault == "full disk" and soak.is_mounted:
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            except OSError:
                pass
        process.wait(PATIENCE)
        ballast.unlink()
    elif fault == "full disk":
        process.wait(PATIENCE)  # it was started with a limit on file sizes
    elif fault == "lock removed":
        (soak.run.path / ".lock").unlink()
        process.wait(PATIENCE)
    else:
        if fault == "dead reader":
            assert process.stdout is not None
            process.stdout.close()
            goal = last_step(soak.run) + CHECKPOINT_EVERY
            wait_for(process, lambda: last_step(soak.run) >= goal)
        is_asked = EXIT_STATUS[fault] == RESUME_EXIT_STATUS
        process.send_signal(signal.SIGTERM if is_asked else signal.SIGKILL)
        process.wait(PATIENCE)
    if fault == "flipped bit":
        newest = checkpoint_folders(soak.run.checkpoints)[-1] / "joint.safetensors"
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    if fault == "left-out tensors":
        leave_out_tensors(checkpoint_folders(soak.run.checkpoints)[-1])
    if fault == "bad log lines":
        with soak.run.metrics_file.open("ab") as file:
            file.write(b"\xff\xfe\n[]\n" + b"[" * 10_000 + b'\n{"step": "x"}\n')
    status = process.returncode
    return f"{status}" if status == EXIT_STATUS[fault] else f"{status}, NOT {EXIT_STATUS[fault]}"


def leave_out_tensors(checkpoint: Path) -> None:
    """Write the newest checkpoint's optimizer state without half of it, and a manifest that holds."""
    file, manifest = checkpoint / "optimizer.safetensors", checkpoint / "manifest.json"
    tensors = load_file(file)
    kept = {name: tensors[name].clone() for name in sorted(tensors)[::2]}
    file.unlink()
    save_file(kept, file)
    content = json.loads(manifest.read_text())
    content[file.name] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    manifest.write_text(json.dumps(content))


def one_fault(soak: Soak, fault: str) -> None:
    """Start or go on, wait for progress, break it, and note what is left."""
    before = last_step(soak.run)
    limit = FILE_LIMIT if fault == "full disk" and not soak.is_mounted else None
    log = None if fault == "dead reader" else soak.folder / "train.log"
    process = start(soak, soak.run.path, log, limit)
    if limit is None:
        goal = before + CHECKPOINT_EVERY + soak.moments.randrange(2 * CHECKPOINT_EVERY)
        wait_for(
            process, lambda: last_step(soak.run) >= goal and len(checkpoint_folders(soak.run.checkpoints)) > 1
        )
        time.sleep(soak.moments.random())
    status = inject(soak, process, fault)
    reached = last_step(soak.run)
    whole = [path for path in checkpoint_folders(soak.run.checkpoints) if verify_checkpoint(path) is None]
    kept = int(whole[-1].name[5:]) if whole else 0
    soak.rows.append((fault, status, str(reached), str(kept), str(max(0, reached - kept))))
    print(" | ".join(soak.rows[-1]), flush=True)


def finish(soak: Soak) -> int:
    """Go on once more, stop in order, and return the step of the last checkpoint."""
    process = start(soak, soak.run.path, soak.folder / "train.log")
    goal = last_step(soak.run) + 2 * CHECKPOINT_EVERY
    wait_for(process, lambda: last_step(soak.run) >= goal)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    checkpoints = [int(path.name[5:]) for path in checkpoint_folders(soak.run.checkpoints)]
    return max(step for step in checkpoints if step % CHECKPOINT_EVERY == 0)


def compare(soak: Soak, step: int) -> list[str]:
    """Run without faults up to `step`, and return what differs."""
    reference = RunDirectory(soak.folder / "reference")
    process = start(soak, reference.path, soak.folder / "reference.log")
    target = f"step_{step:08d}"
    copy = soak.folder / "reference_checkpoint" / target
    deadline = time.monotonic() + 3600
    while not (reference.checkpoints / target).is_dir():
        if process.poll() is not None or time.monotonic() > deadline:
            return [f"the reference run did not reach step {step}"]
        time.sleep(0.02)
    shutil.copytree(reference.checkpoints / target, copy)
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    ours, theirs = (latest_checkpoint(path) for path in (soak.run.checkpoints, copy.parent))
    ours = ours if ours is not None and ours.step == step else _checkpoint_at(soak, target)
    assert ours is not None
    assert theirs is not None
    differing = []
    for file in sorted(theirs.path.glob("*.safetensors")):
        one, other = ours.tensors(file.stem), theirs.tensors(file.stem)
        differing += [f"{file.stem}/{key}" for key in other if not torch.equal(one[key], other[key])]
    rows = [_timeless(run, step) for run in (soak.run, reference)]
    if rows[0] != rows[1]:
        differing.append("rows of the log")
    return differing


def _checkpoint_at(soak: Soak, name: str) -> Any:
    from simflow_plugin.runs.checkpoints import read_checkpoint

    path = soak.run.checkpoints / name
    problem = verify_checkpoint(path)
    if problem is not None:
        raise AssertionError(f"{path}: {problem}")
    return read_checkpoint(path)


def _timeless(run: RunDirectory, step: int) -> list[dict[str, Any]]:
    rows = [row for row in run.read_metrics() if row["step"] <= step]
    return [{key: value for key, value in row.items() if key not in CLOCK_KEYS} for row in rows]


def report(soak: Soak, step: int, differing: list[str], minutes: float) -> int:
    """Print the table; return the exit status."""
    heads = ("fault", "exit status", "step reached", "step kept", "steps repeated")
    print(f"\n{minutes:.1f} minutes of faults, {len(soak.rows)} of them, {step} steps compared\n")
    for row in (heads, ("---",) * 5, *soak.rows):
        print("| " + " | ".join(row) + " |")
    messages = (soak.folder / "train.log").read_text(errors="replace")
    named = {line.split(": ", 1)[-1] for line in messages.splitlines() if "corrupt image skipped" in line}
    steps = [row["step"] for row in soak.run.read_metrics()]
    missing = len(set(range(5, max(steps) + 1, 5)) - set(steps))
    doubled = len(steps) - len(set(steps))
    unexpected = sum("NOT" in row[1] for row in soak.rows)
    print(f"\ncorrupt images: {NUM_CORRUPT} planted, {len(named)} named in the log and skipped")
    print(f"rows of the log: {missing} missing, {doubled} doubled")
    print(f"exit statuses other than documented: {unexpected}")
    print(f"against the run without faults, bit for bit: {', '.join(differing) or 'no difference'}")
    return int(bool(differing or missing or doubled or unexpected or len(named) > NUM_CORRUPT))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="of faults; the reference run comes on top"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments")
    parser.add_argument("--out", type=Path, help="kept; default: a temporary folder, deleted")
    arguments = parser.parse_args()
    # The log is read many times a second here; each time its bad lines would be named.
    logging.getLogger("simflow_plugin.runs.run_directory").setLevel(logging.ERROR)
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="soak_"))
    soak = Soak(folder.resolve(), random.Random(arguments.seed))
    disk = soak.folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)]
    soak.is_mounted = (
        os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    try:
        write_images(soak.folder / "images")
        write_config(soak)
        order = list(FAULTS)
        started = time.monotonic()
        while (elapsed := (time.monotonic() - started) / 60) < arguments.minutes:
            # Every kind in turn, in an order of its own each time.
            if len(soak.rows) % len(FAULTS) == 0:
                soak.moments.shuffle(order)
            one_fault(soak, order[len(soak.rows) % len(FAULTS)])
        step = finish(soak)
        return report(soak, step, compare(soak, step), elapsed)
    finally:
        if soak.is_mounted:
            subprocess.run(["umount", str(disk)], check=True)
        if arguments.out is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
