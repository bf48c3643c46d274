"""Prepared shards: the bytes do not depend on processes or interruptions, and training reads what was written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from simflow_plugin import registry
from simflow_plugin.cli.app import app
from simflow_plugin.config.data_argument import resolve_data
from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.preparing import images
from simflow_plugin.preparing.images import Preparation, prepare
from simflow_plugin.registry import Part


def make_folder(folder: Path, per_class: int = 5) -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("zebra", "ant"):
            (folder / split / name).mkdir(parents=True)
            for number in range(per_class):
                pixels = generator.integers(0, 256, (20, 24 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def preparation(folder: Path, **changed) -> Preparation:
    return Preparation(
        resolve_data(str(folder), "DATA"), **{"image_size": 16, "images_per_shard": 3} | changed
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".tar"}


def test_training_reads_the_images_labels_and_class_names_that_were_prepared(tmp_path):
    source = make_folder(tmp_path / "source")
    prepare(preparation(source), tmp_path / "out", 1)
    shards = {
        f"{key}shards": str(tmp_path / "out" / f"{split}-*.tar")
        for key, split in (("", "train"), ("test_", "test"))
    }
    prepared = Part.model_validate({"name": "webdataset", **shards, "cache": str(tmp_path / "cache")})
    for split in ("train", "test"):
        before = preparation(source).dataset(split)
        after = prepared.build(registry.DATASETS, DataContext(16, split))
        assert after.class_names == before.class_names == ["ant", "zebra"]
        assert len(after) == len(before) == 10
        for index in range(10):
            assert torch.equal(after[index].image, before[index].image)
            assert after[index].label == before[index].label


def test_names_stay_with_their_numbers_where_they_are_in_no_alphabetical_order(tmp_path):
    card = {"written_by": "simflow prepare", "classes": ["zebra", "ant"]}
    prepare(preparation(make_folder(tmp_path / "source")), tmp_path / "out", 1)
    full = json.loads((tmp_path / "out" / "dataset.json").read_text())
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(full | card))
    part = Part.model_validate(
        {
            "name": "webdataset",
            "shards": str(tmp_path / "out" / "train-*.tar"),
            "cache": str(tmp_path / "cache"),
        }
    )
    assert part.build(registry.DATASETS, DataContext(16, "train")).class_names == ["zebra", "ant"]


def test_processes_do_not_change_a_byte(tmp_path):
    source = make_folder(tmp_path / "source")
    prepare(preparation(source), tmp_path / "one", 1)
    prepare(preparation(source), tmp_path / "two", 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 8
    cards = [(tmp_path / name / "dataset.json").read_bytes() for name in ("one", "two")]
    assert cards[0] == cards[1]


def test_interrupted_preparation_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    source, calls = make_folder(tmp_path / "source"), []
    prepare(preparation(source), tmp_path / "whole", 1)
    write = images.write_shard

    def killed(*of):
        calls.append(of[1].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*of)

    monkeypatch.setattr(images, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(preparation(source), tmp_path / "out", 1)
    assert not (tmp_path / "out" / "dataset.json").exists()
    (tmp_path / "out" / calls[0]).write_bytes(b"torn")  # as a disk that lost power may leave it
    prepare(preparation(source), tmp_path / "out", 1)
    assert calls.count(calls[1]) == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def test_other_settings_and_a_finished_folder_are_refused(tmp_path, monkeypatch):
    source = make_folder(tmp_path / "source")
    monkeypatch.setattr(images, "write_shard", lambda *of: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        prepare(preparation(source), tmp_path / "out", 1)
    with pytest.raises(RunDirectoryError, match="begun with image_size 16, and this is 8"):
        prepare(preparation(source, image_size=8), tmp_path / "out", 1)
    monkeypatch.undo()
    prepare(preparation(source), tmp_path / "out", 1)
    with pytest.raises(RunDirectoryError, match="not empty"):
        prepare(preparation(source), tmp_path / "out", 1)


def test_damaged_images_are_counted_named_and_bounded(tmp_path):
    source = make_folder(tmp_path / "source")
    (source / "train" / "ant" / "2.png").write_bytes(b"no image")
    answer = CliRunner().invoke(
        app, ["prepare", str(source), "--out", str(tmp_path / "out"), "--size", "16", "--workers", "1"]
    )
    assert answer.exit_code == 0, answer.output
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert card["splits"]["train"]["images"] == 9
    assert card["splits"]["train"]["images_by_class"] == {"ant": 4, "zebra": 5}
    assert "2.png" in card["splits"]["train"]["damaged"][0]
    for file in ("dataset.json", "README.md"):
        text = (tmp_path / "out" / file).read_text()
        assert "2.png" in text
        assert str(tmp_path) not in text  # a card is passed on
    (source / "train" / "ant" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 10 images are corrupt"):
        prepare(preparation(source), tmp_path / "again", 1)
