"""Code of other distributions."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from tools.attack.target import Attack, Target, verdict

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
