"""environment.json: what a run was computed with, one record each time it was started.

Package and commit, Python and libraries, devices, the command. No name of a user or a machine: the home folder is
written as `~`, and what is left of their names as `USER` and `HOST`.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simflow_plugin import __version__
from simflow_plugin.registry import OWN_DISTRIBUTION
from simflow_plugin.resources import PACKAGE

if TYPE_CHECKING:  # torch is imported where it is used: every command imports this file
    import torch

LIBRARIES = (
    *(
        "torch",
        "torchvision",
        "accelerate",
        "diffusers",
        "timm",
        "torch-fidelity",
        "lpips",
        "numpy",
        "pillow",
    ),
    *("safetensors", "pydantic", "xformers", "scipy", "scikit-learn"),
)
ENTRY_POINTS = "simflow_plugin."
GIT_SECONDS = 10.0


def describe_environment(
    device: torch.device, num_processes: int = 1, arguments: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what this process computes with, as JSON has it; `arguments` are those of its command by default."""
    import torch

    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "simflow_plugin": __version__,
        "commit": commit_of_package(),
        "command": command_line(sys.argv if arguments is None else arguments),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": {name: version for name in LIBRARIES if (version := _version(name)) is not None},
        "plugins": _plugins(),
        "device": device.type,
        "devices": _devices(device),
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        **({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if _is_cuda(device) else {}),
    }


def read_environments(file: Path) -> list[dict[str, Any]]:
    """Return the records of environment.json, oldest first; none of a run of an earlier version."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []


def commit_of_package() -> dict[str, Any] | None:
    """Return the commit that the package is at: `{id, changed}`; None where it was installed from a package index."""
    root = PACKAGE.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is not None and Path(top).resolve() == root:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
        return None if commit is None else {"id": commit, "changed": bool(changes)}
    try:
        origin = metadata.distribution(OWN_DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return None if commit is None else {"id": commit, "changed": False}


def command_line(arguments: Sequence[str]) -> str:
    """Return a command without the folder of its program, and without names of users or machines."""
    if not arguments:
        return ""
    program, *rest = arguments
    if Path(program).suffix == ".py":  # `python -m simflow_plugin.train`: sys.argv holds the module's file
        parts = Path(program).with_suffix("").parts
        own = parts.index(PACKAGE.name) if PACKAGE.name in parts else len(parts) - 1
        first = f"python -m {'.'.join(parts[own:]).removesuffix('.__main__')}"
    else:
        first = Path(program).name
    return without_names(" ".join([first, *map(shlex.quote, rest)]))


def without_names(text: str) -> str:
    """Replace the home folder by `~` and the names of user and machine by `USER` and `HOST`, where they are words."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?=/|\b)", "~", text)
    text = re.sub(r"(?<![\w~])/(?:home|Users)/[^/\s'\"]+", "~", text)
    for name, word in ((_user(), "USER"), (socket.gethostname(), "HOST")):
        if name:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", word, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without an entry in the list of users
        return ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _plugins() -> dict[str, str]:
    """Return {distribution: version} of the others that add parts."""
    found = {
        distribution.name: distribution.version
        for distribution in metadata.distributions()  # grouped entry points differ between Python 3.10 and 3.12
        if any(entry.group.startswith(ENTRY_POINTS) for entry in distribution.entry_points)
    }
    return {name: found[name] for name in sorted(found) if name != OWN_DISTRIBUTION}


def _is_cuda(device: torch.device) -> bool:
    import torch

    return device.type == "cuda" and torch.cuda.is_available()


def _devices(device: torch.device) -> list[str]:
    if not _is_cuda(device):
        return [f"{_processor()}, {os.cpu_count()} cores"]
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in found]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
