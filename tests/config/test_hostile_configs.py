"""A configuration that somebody else wrote runs no command, names no foreign folder, and ends in one clear error."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.config.loading import load_config
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.webdataset import WebDataset
from simflow_plugin.errors import ConfigError, DataError
from simflow_plugin.train import train
from tests.data.makers import numbered_shard

PIPED = """extends: quickstart
data: {{name: webdataset, shards: "pipe:touch {mark}; cat {shard}", labels: false, test_share: 0.5}}
evaluation: {{judge: none}}
"""


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration that leaves a mark when it runs a command."""
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "data"))
    path = tmp_path / "piped.yaml"
    path.write_text(PIPED.format(mark=tmp_path / "mark", shard=tmp_path / "a.tar"))
    return path


@pytest.mark.parametrize("command", [["plan"], ["config", "show"], ["train", "--out", "{out}/run"]])
def test_no_command_of_a_configuration_is_run_without_consent(
    piped: Path, tmp_path: Path, command: list[str]
) -> None:
    arguments = [part.format(out=tmp_path) for part in command]
    result = CliRunner().invoke(app, [*arguments, str(piped)])
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "run").exists()
    if command[0] == "train":
        assert result.exit_code == 2


def test_no_configuration_gives_the_consent(tmp_path: Path) -> None:
    for key in ("data.allow_pipes", "data.allows_pipes", "allow_pipes", "training.allow_pipes"):
        with pytest.raises(ConfigError, match="unknown key"):
            load_config("quickstart", [f"{key}=true"])


def test_consent_runs_the_command_once_and_its_output_is_read_without(tmp_path: Path) -> None:
    numbered_shard(tmp_path / "a.tar", range(10))
    values = {
        "shards": f"pipe:touch {tmp_path}/mark; cat {tmp_path}/a.tar",
        "cache": str(tmp_path / "cache"),
    }
    options = WebDataset.Options(**values)
    with pytest.raises(DataError, match="--allow-pipes"):
        WebDataset(options, DataContext(8, "train"))
    assert len(WebDataset(options, DataContext(8, "train", allows_pipes=True))) > 0
    (tmp_path / "mark").unlink()
    assert len(WebDataset(options, DataContext(8, "train"))) > 0
    assert not (tmp_path / "mark").exists()


def test_training_hands_the_consent_on_and_does_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def built(*of: Any) -> Any:
        seen.append(of)
        raise DataError("enough")

    monkeypatch.setattr("simflow_plugin.runs.parts.build_dataset", built)
    config = load_config("quickstart")
    for allows in (True, False):
        with pytest.raises(DataError, match="enough"):
            train(config, None, [], allows_pipes=allows)  # type: ignore[arg-type]
    assert [of[2] for of in seen] == [True, False]


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "..", ".", "", ".hidden", "a\\b", "a\0b", "n" * 101]
)
def test_name_of_a_run_is_no_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    escaped = name.replace("\\", "\\\\").replace("\0", "\\0")
    Path("a.yaml").write_text(f'extends: quickstart\nname: "{escaped}"\n')
    result = CliRunner().invoke(app, ["train", "a.yaml"])
    assert result.exit_code == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.yaml", "deep", "er"]


def bomb(lines: int) -> str:
    names = "abcdefghijklmnop"[:lines]
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in itertools.pairwise(names):
        text += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    return text + "extends: quickstart\n"


@pytest.mark.parametrize("place", ["file", "--set"])
def test_aliases_are_bounded(place: str, tmp_path: Path) -> None:
    path, started = tmp_path / "bomb.yaml", time.monotonic()
    path.write_text(bomb(12) if place == "file" else "extends: quickstart\n")
    overrides = [f"data={{{', '.join(bomb(12).splitlines()[:-1])}}}"] if place == "--set" else []
    with pytest.raises(ConfigError, match="stand for more than"):
        load_config(str(path), overrides)
    assert time.monotonic() - started < 20


def test_aliases_that_a_person_writes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("extends: quickstart\ntraining: {steps: &n 400, sample_every: *n}\n")
    assert load_config(str(path)).training.sample_every == 400


def test_file_that_is_no_configuration_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        load_config(str(path))


@pytest.mark.parametrize(
    "assignment",
    [
        "training.num_workers=100000",
        "training.batch_size=1000000000000",
        "training.accumulation=1000000000000",
        f"training.steps={10**30}",
        f"training.log_every={10**400}",
        f"optimizer.lr={10**400}",
        f"seed={2**64}",
        f"optimizer.betas=[0.9, {10**30}]",
        "image_size=100000000",
        "sampling.batch_size=1000000000000",
        "sampling.grid_per_class=1000000000",
        "evaluation.num_samples=1000000000000",
        "model.flow.width=1000000000",
        "model.flow.layers_per_block=[1, 1000000000]",
        "autoencoder.latent_channels=1000000000",
        "autoencoder.widths=[8, 1000000000]",
    ],
)
def test_counts_are_bounded(assignment: str) -> None:
    with pytest.raises(ConfigError, match=assignment.split("=")[0].replace(".", r"\.")):
        load_config("quickstart", [assignment])


@pytest.mark.parametrize(
    "assignment",
    [
        "training.steps=true",
        "training.steps=yes",
        "optimizer.lr=true",
        "optimizer.betas=[0.9, false]",
        "training.keep_every=on",
        "seed=false",
        "training.steps=1:30",
        "training.steps=010",
        "optimizer.lr=1:30.5",
        "training.steps=-010",
        "autoencoder.widths=[010, 8]",
        "autoencoder.widths=[true, 8]",
        "autoencoder.factor=true",
    ],
)
def test_no_value_is_taken_for_another(assignment: str) -> None:
    with pytest.raises(ConfigError, match=assignment.split("=")[0].replace(".", r"\.")):
        load_config("quickstart", [assignment])


@pytest.mark.parametrize(
    ("assignment", "value"),
    [("steps=0", None), ("steps=100", 100), ("steps=1e3", 1000), ("steps=1_000", 1000)],
)
def test_plain_numbers_are_what_they_were(assignment: str, value: int | None) -> None:
    arguments = [f"training.{assignment}", "optimizer.warmup_steps=0"]
    if value is None:
        with pytest.raises(ConfigError, match="greater than 0"):
            load_config("quickstart", arguments)
    else:
        assert load_config("quickstart", arguments).training.steps == value


def test_range_of_shards_is_bounded(tmp_path: Path) -> None:
    for wanted in ("{0..99999999}", "{0..9999999999999999999}"):
        options = WebDataset.Options(shards=f"{tmp_path}/{wanted}.tar")
        with pytest.raises(DataError, match="a range of more than"):
            WebDataset(options, DataContext(8, "train"))
