"""Every block of the README runs as printed, in order, in one folder.

A block whose first line is a comment with a file's name is that file. Commands run in this process; training is cut
short by overrides that come after the printed ones.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from simflow_plugin import registry
from simflow_plugin.cli.app import app
from simflow_plugin.config.loading import load_config
from simflow_plugin.starter import first_configuration
from simflow_plugin.starter.trial_steps import Timing
from tests.commands import simflow, succeed
from tests.data.makers import class_folders
from tests.third_party import declare

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./]+\.\w+)\n")
SHORT = {
    "training.steps": 2,
    "training.batch_size": 4,
    "training.log_every": 1,
    "training.sample_every": 2,
    "training.checkpoint_every": 2,
    "optimizer.warmup_steps": 0,
    "sampling.grid_per_class": 1,
    "evaluation": "{num_samples: 4, num_likelihood: 4, judge: none}",
}


def blocks(page="README.md"):
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def of_make(target):
    """Return the `simflow` commands of a target of the Makefile."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None, f"the Makefile has no target {target}"
    lines = [line.strip().lstrip("@") for line in recipe[1].splitlines()]
    return [line.replace("$(BIN)/", "") for line in lines if line.startswith("$(BIN)/simflow")]


def run_line(line):
    """Run one line of a bash block."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "make":
        for command in of_make(words[1]):
            run_line(command)
    elif words[0] == "pip":
        assert words == ["pip", "install", "."]
        assert (ROOT / "pyproject.toml").is_file()
    else:
        assert words[0] == "simflow", line
        short = [f"{key}={value}" for key, value in SHORT.items()] if words[1] == "train" else []
        more = ["--num", "4"] if words[1] == "sample" else []
        more += ["--num-samples", "4", "--num-held-out", "4"] if words[1] == "evaluate" else []
        arguments = [*words[1:], *more, *(word for setting in short for word in ("--set", setting))]
        status, output = simflow(*arguments)
        assert status == 0, f"{line}\n{output}"


def write_file(name, text):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def test_every_block_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(first_configuration, "time_here", lambda config: Timing(0.1, 1.0, 16))
    class_folders(tmp_path / "path" / "to" / "my" / "images", {"cat": 12, "dog": 12})
    ran = []
    for language, text in blocks():
        named = FILE.match(text)
        if named is not None:
            write_file(named[1], text)
        if language == "python" and named is None:
            exec(compile(text, "README.md", "exec"), {})
        elif language == "bash":
            for line in text.splitlines():
                run_line(line)
        elif language == "yaml":
            load_config(named[1])
        ran.append(language)
    assert {"python", "bash", "yaml", "toml"} <= set(ran)
    assert Path("three.png").is_file()
    assert Path("cats_and_dogs.png").is_file()


def test_parts_of_the_readme_train_under_the_names_of_its_entry_points(tmp_path, monkeypatch):
    tomllib = pytest.importorskip("tomllib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {FILE.match(text)[1]: text for _, text in blocks() if FILE.match(text)}
    for name, text in files.items():
        write_file(name, text)
    groups = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]
    for group, entries in groups.items():
        lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
        declare(tmp_path, f"readme-{group}", f"[{group}]\n{lines}")
    try:
        tiny = ["train", "quickstart", "--no-report", *(f"--set={k}={v}" for k, v in SHORT.items())]
        frozen = ["--set=model=gaussian", "--set=autoencoder.trainable=none", "--set=sampling.guidance=0"]
        for extra in (frozen, ["--set=autoencoder.posterior=per_token"]):
            succeed(*tiny, "--out", f"run{len(extra)}", *extra)
        assert registry.MODELS.get("gaussian").__module__ == "my_package.models"
    finally:
        for module in [name for name in sys.modules if name.startswith("my_package")]:
            del sys.modules[module]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_to_files_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_commands_page_names_every_command():
    page = (ROOT / "docs" / "commands.md").read_text()
    names = [command.name for command in app.registered_commands] + ["config"]
    assert not [name for name in names if f"`{name}`" not in page and f"`simflow {name}`" not in page]


def test_yaml_of_the_readme_is_small():
    """Someone's first own run is of a few million parameters, not of a hundred."""
    from simflow_plugin.config.loading import config_from_source
    from simflow_plugin.config.yaml_source import YamlSource
    from simflow_plugin.planning.estimate import Setting, make_plan

    (text,) = [text for language, text in blocks() if language == "yaml"]
    config = config_from_source(YamlSource(yaml.safe_load(text), {}, "README.md"))
    assert make_plan(config, Setting(devices=1)).trained < 10e6
