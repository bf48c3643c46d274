"""`simflow convert`: files in, a folder out, and every kind of bad file refused by name."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.convert import from_ml_starflow, load_converted
from simflow_plugin.convert.foreign_checkpoint import convert_checkpoint
from simflow_plugin.errors import ConfigError, RunDirectoryError, WeightsError
from simflow_plugin.flow import TransformerFlow
from simflow_plugin.models.sit import SiT
from tests.convert.fixtures import FOLDER, read_numbers

NAME = "ml_starflow_text"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    config, weights, _ = read_numbers(NAME)
    torch.save(weights, tmp_path / "peer.pth")
    (tmp_path / "peer.json").write_text(json.dumps(config))
    return tmp_path / "peer.pth", tmp_path / "peer.json"


def test_command_writes_a_folder_that_loads(files: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, config = files
    out = tmp_path / "converted"
    command = ["convert", "--from", "ml-starflow", "--checkpoint", str(checkpoint), "--config", str(config)]
    result = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["flow.json", "flow.safetensors"]
    loaded = load_converted(out)
    assert isinstance(loaded, TransformerFlow)
    arguments, weights, _ = read_numbers(NAME)
    expected = from_ml_starflow(weights, arguments)
    assert loaded.config == expected.config
    assert all(map(torch.equal, loaded.parameters(), expected.parameters()))


def test_safetensors_and_nested_checkpoints_are_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, config = files
    _, weights, _ = read_numbers(NAME)
    save_file(weights, tmp_path / "peer.safetensors")
    torch.save({"model": weights, "step": 3, "args": argparse.Namespace(lr=1.0)}, tmp_path / "nested.pt")
    for number, name in enumerate(["peer.safetensors", "nested.pt"]):
        line = convert_checkpoint("ml-starflow", tmp_path / name, config, tmp_path / f"out{number}")
        assert "parameters" in line


def test_full_folder_is_left_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="not empty"):
        convert_checkpoint("ml-starflow", *files, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peer.json", "peer.pth"]


def test_unknown_source_lists_the_known_ones(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ml-tarflow"):
        convert_checkpoint("ml-tarflo", *files, tmp_path / "out")


def test_missing_configuration_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        convert_checkpoint("ml-starflow", files[0], None, tmp_path / "out")


def test_folder_is_refused_with_the_way_out(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="dcp_to_torch"):
        convert_checkpoint("ml-starflow", tmp_path, files[1], tmp_path / "out")


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_truncated_file_is_refused(files: tuple[Path, Path], tmp_path: Path, kept: float) -> None:
    content = files[0].read_bytes()
    torn = tmp_path / "torn.pth"
    torn.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=r"torn\.pth"):
        convert_checkpoint("ml-starflow", torn, files[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def test_code_in_a_checkpoint_is_not_run(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        convert_checkpoint("ml-starflow", tmp_path / "evil.pth", files[1], tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_error_of_the_arguments_names_their_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peer\.json: ml-tarflow"):
        convert_checkpoint("ml-tarflow", *files, tmp_path / "out")


def test_converted_folder_without_its_weights_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_checkpoint("ml-starflow", *files, out)
    content = (out / "flow.safetensors").read_bytes()
    (out / "flow.safetensors").write_bytes(content[:1000])
    with pytest.raises(WeightsError, match="torn"):
        load_converted(out)
    (out / "flow.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"flow\.json"):
        load_converted(out)
    with pytest.raises(WeightsError, match=r"flow\.json"):
        load_converted(tmp_path)


def test_sit_of_a_training_checkpoint_is_converted(tmp_path: Path) -> None:
    numbers = load_file(FOLDER / "repa_e_sit.safetensors")
    host: dict[str, Tensor] = {
        key.removeprefix("host."): value for key, value in numbers.items() if key.startswith("host.")
    }
    raw = {key: torch.zeros_like(value) for key, value in host.items()}
    torch.save({"model": raw, "ema": host, "args": argparse.Namespace(), "steps": 1}, tmp_path / "0000001.pt")
    (tmp_path / "sit.yaml").write_text("num_heads: 4\nencoder_depth: 1\n")
    convert_checkpoint("repa-e", tmp_path / "0000001.pt", tmp_path / "sit.yaml", tmp_path / "out")
    sit = load_converted(tmp_path / "out")
    assert isinstance(sit, SiT)
    assert torch.equal(sit.state_dict()["backbone.head.linear.weight"], host["final_layer.linear.weight"])
