"""The real REPA-E, where REPA_E_DIR names a checkout: patched, its own scripts train, resume and sample on the CPU.

A copy is used, the checkout itself is not touched. What is replaced in memory is in `real_repa_e.py`. Minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simflow_plugin.hosts import patching
from simflow_plugin.hosts.manifest import find_host
from tests.hosts.standin import git, install

CHECKOUT = os.environ.get("REPA_E_DIR")
pytestmark = [
    pytest.mark.skipif(not CHECKOUT, reason="REPA_E_DIR names no checkout of REPA-E"),
    pytest.mark.timeout(1800),
]
PROJECT = Path(__file__).parents[2]
RUNNER = Path(__file__).parent / "real_repa_e.py"
JOINT = ("--model", "SimFlow-S/2", "--vae", "f8d4-fixedvar")
OWN = ("--model", "SiT-B/2", "--vae", "f8d4", "--sit-width", "64")


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Path:
    """Return a patched copy of the checkout."""
    assert CHECKOUT is not None
    root = tmp_path_factory.mktemp("host") / "REPA-E"
    shutil.copytree(CHECKOUT, root, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    patching.apply(find_host("repa-e"), root)
    return root


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return a folder with the entry points that pyproject.toml declares, in case the package is not installed."""
    site = tmp_path_factory.mktemp("site")
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]
    install(
        site, "simflow", {group: entries["simflow"] for group, entries in groups.items() if "repa_e" in group}
    )
    return site


def run(root: Path, path: list[Path], folder: Path, script: str, *words: str) -> str:
    """Run a script of the host and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-s", str(RUNNER), str(root / script), str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def train(root: Path, path: list[Path], folder: Path, steps: int, *words: str) -> str:
    folder.mkdir(exist_ok=True)
    common = (
        f"--output-dir {folder} --exp-name a --data-dir {folder} --vae-ckpt {folder}/vae.pt --batch-size 2"
    )
    quick = f"--encoder-depth 2 --no-compile --mixed-precision no --num-workers 0 --max-train-steps {steps}"
    saving = f"--checkpointing-steps {steps}"
    return run(root, path, folder, "train_repae.py", *f"{common} {quick} {saving}".split(), *words)


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def joint_run(host, site, tmp_path_factory) -> Path:
    """Return the folder of three steps of SimFlow with a fixed-variance autoencoder."""
    folder = tmp_path_factory.mktemp("joint")
    train(host, [PROJECT, site], folder, 3, *JOINT, "--weights", "f8d4-fixedvar")
    return folder


def assert_three_steps_train_both(folder: Path) -> None:
    steps = losses(folder)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(np.isfinite(step["denoising_loss"]) and step["grad_norm_vae"] > 0 for step in steps)


def test_three_steps_train_flow_and_encoder(joint_run):
    assert_three_steps_train_both(joint_run)


def test_three_steps_train_simflows_own_flow_and_autoencoder(host, site, tmp_path):
    """adaLN in every layer, and the encoder without a log-variance."""
    own = ("--model", "SimFlow-simflow-xxl/1", "--vae", "f16d64-fixedvar")
    train(host, [PROJECT, site], tmp_path / "own", 3, *own, "--weights", "f16d64-fixedvar")
    assert_three_steps_train_both(tmp_path / "own")


def test_the_run_resumes(joint_run, host, site):
    resume = ("--resume-step", "3", "--resume-from", str(joint_run / "a"))
    train(host, [PROJECT, site], joint_run, 4, *JOINT, *resume)
    assert losses(joint_run)[-1]["step"] == 4


def test_generate_samples_from_the_average(joint_run, host, site):
    samples = joint_run / "samples"
    run(
        host,
        [PROJECT, site],
        joint_run,
        "generate.py",
        *f"--exp-path {joint_run / 'a'} --train-steps 3 --num-fid-samples 2 --pproc-batch-size 2".split(),
        *f"--cfg-scale 2.0 --sample-dir {samples}".split(),
    )
    (archive,) = samples.glob("*.npz")
    assert np.load(archive)["arr_0"].shape == (2, 256, 256, 3)


def test_the_hosts_own_model_trains_to_the_same_digits_before_patched_and_without_the_plugin(
    host, site, tmp_path
):
    before = tmp_path / "unpatched"
    shutil.copytree(host, before)
    patching.revert(find_host("repa-e"), before)
    logs = []
    for name, root, path in (
        ("before", before, []),
        ("patched", host, [PROJECT, site]),
        ("absent", host, []),
    ):
        train(root, path, tmp_path / name, 2, *OWN, "--weights", "f8d4")
        logs.append(losses(tmp_path / name))
    assert logs[0] == logs[1] == logs[2]


def test_a_learned_variance_is_allowed_with_one_warning(host, site, tmp_path):
    words = ("--model", "SimFlow-S/2", "--vae", "f8d4", "--weights", "f8d4")
    assert train(host, [PROJECT, site], tmp_path / "run", 1, *words).count("ablation") == 1


def test_reverting_leaves_no_difference(host, tmp_path):
    root = tmp_path / "REPA-E"
    shutil.copytree(host, root)
    patch = find_host("repa-e")
    assert set(patching.check(patch, root).values()) == {"patched"}
    patching.revert(patch, root)
    assert git(root, "diff", "--", *patch.files) == ""
