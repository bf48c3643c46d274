"""Damaged and hostile inputs, tried through the command line: a table of groups, tried and survived.

    python tools/attack.py                       # this checkout
    python tools/attack.py --package ../before   # another one, to compare

An input is survived when the command ends in time with a documented status (0, 2 or 3), without a traceback and without
having run anything that the input smuggled in, and when a status of 0 stands for the right result: the bytes that the
undamaged input gives, where there are any. Deterministic by `--seed`. Everything happens in a temporary folder; a C++
compiler is needed for the group `kernel`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

TIME_LIMIT = 300
DOCUMENTED = (0, 2, 3)
MARKER = "attack-marker"
TINY = ["quickstart", "--set", "training.steps=2", "--set", "optimizer.warmup_steps=1"]
TINY += ["--set", "training.sample_every=2", "--set", "training.checkpoint_every=2"]


@dataclass
class Outcome:
    """Count of inputs of one group, and one line for each that did not survive."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)


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


def _flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    position = rng.randrange(len(data))
    data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


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
        yield damaged(f"flipped bit {index}", lambda path: _flip_bit(path, rng))
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


def _rewrite(checkpoint: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change tensors of a file of a checkpoint, and its manifest so that the checksum holds."""
    path, manifest = checkpoint / name, checkpoint / "manifest.json"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    text = manifest.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest())
    manifest.write_text(text.replace(f'"bytes": {size}', f'"bytes": {path.stat().st_size}'))


def _largest(tensors: dict[str, torch.Tensor], suffix: str = "") -> str:
    return max((name for name in tensors if name.endswith(suffix)), key=lambda name: tensors[name].numel())


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(_largest(tensors))


def _other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_largest(tensors)] = torch.zeros(3)


def _broadcastable(tensors: dict[str, torch.Tensor]) -> None:
    name = _largest(tensors)
    tensors[name] = tensors[name][:1].clone()


def _not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[_largest(tensors)].view(-1)[0] = float("nan")


def _integers(tensors: dict[str, torch.Tensor]) -> None:
    name = _largest(tensors)
    tensors[name] = tensors[name].to(torch.int8)


def _surplus(tensors: dict[str, torch.Tensor]) -> None:
    tensors["surplus"] = torch.zeros(2)


def attack_checkpoints(target: Target, rng: random.Random) -> Attack:
    """A run that goes on from a checkpoint whose tensors, files, manifest or log were changed."""
    resume = [*TINY, "--set", "training.steps=3", "--no-report", "--allow-changed", "training.steps"]

    def resumed(name: str, damage: Callable[[Path, Path], None], refused: bool) -> tuple[str, str | None]:
        run = target.work / "damaged run"
        shutil.copytree(target.run, run)
        damage(run, sorted((run / "checkpoints").glob("step_*"))[-1])
        status, text = target.simflow("train", *resume, "--out", run)
        shutil.rmtree(run)
        wrong = verdict(status, text)
        return name, wrong or (
            "trained on it in silence" if refused and status == 0 and "skipp" not in text else None
        )

    yield resumed("undamaged", lambda run, checkpoint: None, refused=False)
    changes = (_drop, _other_shape, _broadcastable, _not_finite, _integers, _surplus)
    for file in ("joint", "ema", "optimizer"):
        for change in changes:
            yield resumed(
                f"{file}: {change.__name__.strip('_').replace('_', ' ')}",
                lambda run, checkpoint, file=file, change=change: _rewrite(
                    checkpoint, f"{file}.safetensors", change
                ),
                refused=True,
            )
    for name in ("joint.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        yield resumed(f"{name}: empty", lambda run, c, name=name: (c / name).write_bytes(b""), refused=True)
        yield resumed(f"{name}: cut", lambda run, c, name=name: os.truncate(c / name, 40), refused=True)
        yield resumed(
            f"{name}: flipped bit", lambda run, c, name=name: _flip_bit(c / name, rng), refused=False
        )
    deep = "[" * 100_000 + "]" * 100_000
    for content in (
        "[]",
        "null",
        deep,
        '{"a": 1}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ):
        yield resumed(
            f"manifest: {content[:12]!r}",
            lambda run, c, x=content: _put(c / "manifest.json", x),
            refused=True,
        )
        yield resumed(
            f"log: {content[:12]!r}",
            lambda run, c, x=content: _append(run / "metrics.jsonl", x),
            refused=False,
        )

    def pipe(run: Path, checkpoint: Path) -> None:
        (checkpoint / "manifest.json").unlink()
        os.mkfifo(checkpoint / "manifest.json")

    yield resumed("manifest: FIFO", pipe, refused=True)


def _put(path: Path, content: str) -> None:
    path.write_text(content)


def _append(path: Path, content: str) -> None:
    with path.open("ab") as file:
        file.write(b"\xff\xfe" + content.encode() + b"\n")


def attack_configurations(target: Target, rng: random.Random) -> Attack:
    """Configurations that would run a command, leave their folder, never end, or hold surprising values."""
    marker = target.work / f"{MARKER}-config"
    pipe = f"extends: quickstart\ndata: {{name: webdataset, shards: 'pipe:touch {marker}', num_classes: 2}}\n"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    refused = {
        "aliases": bomb,
        "recursive alias": "a: &a [*a]\n",
        "python tag": "training: !!python/object/apply:os.system ['true']\n",
        "name: ../../x": "extends: quickstart\nname: ../../x\n",
        "name: absolute": "extends: quickstart\nname: /tmp/x\n",
        "steps: true": "extends: quickstart\ntraining: {steps: true}\n",
        "steps: 1:30": "extends: quickstart\ntraining: {steps: 1:30}\n",
        "steps: 010": "extends: quickstart\ntraining: {steps: 010}\n",
        "steps: -1": "extends: quickstart\ntraining: {steps: -1}\n",
        "steps: .inf": "extends: quickstart\ntraining: {steps: .inf}\n",
        "lr: .nan": "extends: quickstart\noptimizer: {lr: .nan}\n",
        "batch_size: 10**12": "extends: quickstart\ntraining: {batch_size: 1000000000000}\n",
        "num_workers: 100000": "extends: quickstart\ndata: {name: digits, num_workers: 100000}\n",
        "image_size: 10**9": "extends: quickstart\nimage_size: 1000000000\n",
        "width: 10**9": "extends: quickstart\nmodel: {flow: {width: 1000000000}}\n",
        "duplicate key": "extends: quickstart\nname: a\nname: b\n",
        "extends itself": "extends: attacked.yaml\n",
        "not a mapping": "- 1\n- 2\n",
        "empty": "",
        "binary": "\x00\x01\x02",
        "deep": "[" * 5000 + "]" * 5000,
        "unknown key": "extends: quickstart\ntraning: {steps: 3}\n",
        "key that is no text": "extends: quickstart\n? [1, 2]\n: 3\n",
    }
    file = target.work / "attacked.yaml"
    for name, text in refused.items():
        file.write_text(text)
        status, output = target.simflow("config", "show", file)
        wrong = verdict(status, output)
        yield name, wrong or ("accepted" if status == 0 else None)
    file.write_text(pipe)
    for command in (
        ("config", "show", file),
        ("plan", file),
        ("train", file, "--out", target.work / "piped"),
    ):
        status, output = target.simflow(*command)
        yield f"pipe in {command[0]}", "the command ran" if marker.exists() else verdict(status, output)
        marker.unlink(missing_ok=True)
    run = target.work / "foreign"
    shutil.copytree(target.run, run)
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("name: digits", f"name: webdataset\n  shards: 'pipe:touch {marker}'")
    )
    for command in (("evaluate", run, "--only", "likelihood"), ("sample", run, "--num", "4")):
        status, output = target.simflow(*command)
        yield f"pipe of a foreign run in {command[0]}", "the command ran" if marker.exists() else None
        marker.unlink(missing_ok=True)


PLUGINS = {
    "sys.exit at import": "import sys\nsys.exit(0)\n",
    "KeyboardInterrupt at import": "raise KeyboardInterrupt\n",
    "BaseException at import": "class Odd(BaseException): pass\nraise Odd\n",
    "raising __str__": "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd\n",
    "syntax error": "def (\n",
    "no such attribute": "",
    "no class": "part = 3\n",
    "sys.exit in the constructor": "import sys\nclass part:\n    def __init__(self, *a, **k): sys.exit(0)\n",
    "recursion at import": "def f(): f()\nf()\n",
}


def attack_plugins(target: Target, rng: random.Random) -> Attack:
    """Plugins that end the process, or whose distribution is malformed; named by a configuration, and not."""
    file = target.work / "plugin.yaml"
    file.write_text("extends: quickstart\nmodel: {name: planted}\n")
    for name, code in PLUGINS.items():
        folder = target.work / "plugins" / name.replace(" ", "_")
        _distribution(folder, "[simflow_plugin.models]\nplanted = planted_module:part\n")
        (folder / "planted_module.py").write_text(code)
        status, text = target.simflow(
            "train", file, "--out", target.work / "planted", "--no-report", path=folder
        )
        yield name, verdict(status, text, allowed=(2,)) or (None if "planted" in text else "not named")
        status, text = target.simflow("config", "show", "quickstart", path=folder)
        yield f"{name}: another part", verdict(status, text, allowed=(0,))
    for entry_points in (
        "[simflow_plugin.models\nx",
        "planted planted",
        "[simflow_plugin.models]\nplanted = a b:c:d",
    ):
        folder = target.work / "plugins" / hashlib.sha256(entry_points.encode()).hexdigest()[:8]
        _distribution(folder, entry_points)
        status, text = target.simflow("config", "show", "quickstart", path=folder)
        yield f"entry_points.txt: {entry_points[:24]!r}", verdict(status, text, allowed=(0,))


def _distribution(folder: Path, entry_points: str) -> None:
    info = folder / "planted-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def attack_numbers(target: Target, rng: random.Random) -> Attack:
    """Networks with a value that is not finite, used by the commands that read them."""
    for value in (float("nan"), float("inf")):
        for part in ("model", "autoencoder"):
            run = target.work / "not finite"
            shutil.copytree(target.run, run)
            checkpoint = sorted((run / "checkpoints").glob("step_*"))[-1]

            def spoil(tensors: dict[str, torch.Tensor], part: str = part, value: float = value) -> None:
                names = {
                    name: tensor
                    for name, tensor in tensors.items()
                    if part in name and name.endswith("weight")
                }
                tensors[_largest(names or tensors)].view(-1)[0] = value

            for file in ("joint.safetensors", "ema.safetensors"):
                _rewrite(checkpoint, file, spoil)
            out = target.work / "from not finite"
            for command in (
                ("sample", run, "--num", "4", "--out", out),
                ("evaluate", run, "--only", "likelihood", "--num-held-out", "4"),
                ("export", run, "--out", out.with_suffix(".safetensors")),
            ):
                status, text = target.simflow(*command)
                yield f"{value} in {part}: {command[0]}", verdict(status, text, allowed=(3,))
            shutil.rmtree(run)
            shutil.rmtree(out, ignore_errors=True)


def attack_disk(target: Target, rng: random.Random) -> Attack:
    """Files that cannot be written in full: status 3, and nothing half-written stays."""
    for limit in (200, 2000, 20_000):
        run = target.work / "full"
        shutil.copytree(target.run, run)
        out = target.work / "half"
        for command in (
            ("evaluate", run, "--only", "likelihood", "--num-held-out", "8"),
            ("analyze", run),
            ("export", run, "--out", out),
            ("sample", run, "--num", "4", "--grid", out / "grid.png"),
        ):
            status, text = target.simflow(*command, file_limit=limit)
            left = [path for path in run.rglob("*.tmp*")] + [p for p in out.rglob("*") if p.is_file()]
            wrong = verdict(status, text, allowed=(0, 3))
            if wrong is None and status == 3 and any("tmp" in path.name for path in left):
                wrong = f"left {left[0].name}"
            yield f"{limit} bytes: {command[0]}", wrong
            shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(run)


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
    parser.add_argument("--package", type=Path, default=Path(__file__).parents[1], help="checkout to attack")
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
    print(json.dumps({group: outcome.failures for group, outcome in outcomes.items()}), file=sys.stderr)
    return 1 if any(outcome.failures for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
