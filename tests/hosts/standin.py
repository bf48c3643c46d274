"""Make a git checkout of the stand-in host, its patch with a manifest, and packages with entry points."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from simflow_plugin.hosts.manifest import MANIFEST_NAME, Manifest, blob_id, read_manifest
from tests.third_party import declare

LOOK_UP = """
import warnings as _warnings
from importlib.metadata import distributions as _distributions
{start}
for _entry in sorted({{e for d in _distributions() for e in d.entry_points if e.group == "{group}"}}):
    try:
        _entry.load()({dictionary})
    except Exception as _error:
        _warnings.warn(f"{group}: {{_entry.name}} = {{_entry.value}} was skipped: {{_error!r}}")
"""
HAND_OVER = """    plugin_sampler = plugin_samplers.get(type(model))
    if plugin_sampler is not None:
        return plugin_sampler(model, latents, y, cfg_scale=cfg_scale)
"""
LATENT_SHAPE = """    elif args.vae in VAES:
        in_channels, latent_size, _ = VAES[args.vae].latent_shape(args.resolution)
"""
CHOICES = """    next(action for action in parser._actions if action.dest == "vae").choices = list(VAES)
"""
TELL = """    getattr(model, "use_host_options", lambda args: None)(args)
"""
# File -> (the line that the insertion follows, or None for the end of the file; the inserted text).
INSERTIONS = {
    "models.py": [(None, LOOK_UP.format(group="standin.models", dictionary="MODELS", start=""))],
    "autoencoders.py": [(None, LOOK_UP.format(group="standin.autoencoders", dictionary="VAES", start=""))],
    "samplers.py": [
        ("):", HAND_OVER),
        (
            None,
            LOOK_UP.format(
                group="standin.samplers", dictionary="plugin_samplers", start="plugin_samplers = {}"
            ),
        ),
    ],
    "train.py": [
        ('    parser.add_argument("--steps", type=int, default=2)', CHOICES),
        ("        in_channels, latent_size = 4, args.resolution // 8", LATENT_SHAPE),
        ("        qk_norm=False,\n    )", TELL),
    ],
}


@dataclass(frozen=True)
class StandIn:
    """A checkout, and the patch for it; `patches` holds one folder for the host, as the shipped one does."""

    root: Path
    patches: Path

    @property
    def patch(self) -> Manifest:
        return read_manifest(self.patches / "standin" / MANIFEST_NAME)

    def contents(self) -> dict[str, bytes]:
        """Return every file of the work tree."""
        return {
            str(file.relative_to(self.root)): file.read_bytes()
            for file in sorted(self.root.rglob("*"))
            if file.is_file() and ".git" not in file.parts
        }


def git(root: Path, *arguments: str) -> str:
    """Run git with an author, and without anybody's configuration."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "core.hooksPath=/dev/null"]
    done = subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def make_standin(folder: Path) -> StandIn:
    """Write checkout and patch below `folder`."""
    root = folder / "checkout"
    package = root / "standin_host"
    shutil.copytree(
        Path(__file__).parent / "standin_host", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "host")
    target = folder / "patches" / "standin"
    target.mkdir(parents=True)
    files = {}
    for name, places in INSERTIONS.items():
        file, text = package / name, (package / name).read_text()
        before = blob_id(text.encode())
        for anchor, inserted in places:
            text = (
                text + inserted if anchor is None else text.replace(f"{anchor}\n", f"{anchor}\n{inserted}", 1)
            )
        file.write_text(text)
        (target / f"{file.stem}.patch").write_text(git(root, "diff", "-U0", "--no-color") + "\n")
        files[f"standin_host/{name}"] = {
            "patch": f"{file.stem}.patch",
            "before": before,
            "after": blob_id(text.encode()),
        }
        git(root, "checkout", "-q", ".")
    manifest = {
        "host": "standin",
        "repository": "tests/standin",
        "url": "https://example.org/standin",
        "commit": git(root, "rev-parse", "HEAD"),
        "files": files,
    }
    (target / MANIFEST_NAME).write_text(json.dumps(manifest))
    return StandIn(root, folder / "patches")


def install(site: Path, distribution: str, entries: dict[str, str]) -> None:
    """Declare entry points, as {group: "module:function"}."""
    declare(
        site,
        distribution,
        "".join(f"[{group}]\n{distribution} = {value}\n" for group, value in entries.items()),
    )
