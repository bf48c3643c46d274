"""`simflow convert`: files in, a folder out, and every kind of bad file refused by name."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from simflow_plugin.contracts import ModelContext
from simflow_plugin.convert import from_ml_starflow, load_converted, save_converted
from simflow_plugin.convert.foreign_checkpoint import convert_checkpoint
from simflow_plugin.errors import ConfigError, RunDirectoryError, WeightsError
from simflow_plugin.flow import TransformerFlow
from simflow_plugin.models.sit import SiT
from tests.commands import succeed
from tests.convert.peers import read_parts

CONFIG, PARTS = read_parts("ml_starflow_text")
WEIGHTS = PARTS["peer"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    torch.save(WEIGHTS, tmp_path / "peer.pth")
    (tmp_path / "peer.json").write_text(json.dumps(CONFIG))
    return tmp_path / "peer.pth", tmp_path / "peer.json"


def test_command_writes_a_folder_that_loads(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "converted"
    checkpoint, config = files
    succeed("convert", "--from", "ml-starflow", "--checkpoint", checkpoint, "--config", config, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["flow.json", "flow.safetensors"]
    loaded, expected = load_converted(out), from_ml_starflow(WEIGHTS, CONFIG)
    assert isinstance(loaded, TransformerFlow)
    assert loaded.config == expected.config
    assert all(map(torch.equal, loaded.parameters(), expected.parameters()))


def test_safetensors_and_nested_checkpoints_are_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "peer.safetensors")
    torch.save({"model": WEIGHTS, "step": 3, "args": argparse.Namespace(lr=1.0)}, tmp_path / "nested.pt")
    for number, name in enumerate(["peer.safetensors", "nested.pt"]):
        line = convert_checkpoint("ml-starflow", tmp_path / name, files[1], tmp_path / f"out{number}")
        assert "parameters" in line


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"out": "."}, RunDirectoryError, "not empty"),
        ({"source": "ml-tarflo"}, ConfigError, "ml-tarflow"),
        ({"config": None}, ConfigError, "--config"),
        ({"checkpoint": "."}, WeightsError, "dcp_to_torch"),
        ({"source": "ml-tarflow"}, ConfigError, r"peer\.json: ml-tarflow"),
    ],
    ids=["full folder", "unknown source", "no configuration", "folder", "arguments of another peer"],
)
@pytest.mark.usefixtures("files")
def test_mistakes_are_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"source": "ml-starflow", "checkpoint": "peer.pth", "config": "peer.json", "out": "out", **change}
    source = given.pop("source")
    paths = {name: None if path is None else tmp_path / path for name, path in given.items()}
    with pytest.raises(error, match=message):
        convert_checkpoint(source, **paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peer.json", "peer.pth"]


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
    host = read_parts("repa_e_sit")[1]["host"]
    raw = {key: torch.zeros_like(value) for key, value in host.items()}
    torch.save({"model": raw, "ema": host, "args": argparse.Namespace(), "steps": 1}, tmp_path / "0000001.pt")
    (tmp_path / "sit.yaml").write_text("num_heads: 4\nencoder_depth: 1\n")
    convert_checkpoint("repa-e", tmp_path / "0000001.pt", tmp_path / "sit.yaml", tmp_path / "out")
    sit = load_converted(tmp_path / "out")
    assert isinstance(sit, SiT)
    assert torch.equal(sit.state_dict()["backbone.head.linear.weight"], host["final_layer.linear.weight"])
    (tmp_path / "out" / "sit.json").write_text(
        '{"latent_shape": [4, 8], "num_classes": 5, "alignment": null}'
    )
    with pytest.raises(ConfigError, match=r"sit\.json: `options`: .*`latent_shape"):
        load_converted(tmp_path / "out")


def test_another_module_is_not_saved_as_a_sit(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="found Linear"):
        save_converted(torch.nn.Linear(1, 1), tmp_path / "out", ModelContext((1, 2, 2), None, None))
