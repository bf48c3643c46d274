"""Prepared shards: the bytes do not depend on processes or interruptions, and training reads what was written."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from simflow_plugin import registry
from simflow_plugin.cli.app import app
from simflow_plugin.config.loading import resolve_data
from simflow_plugin.contracts import DataContext
from simflow_plugin.data import image_folder
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.preparing import cropped_images, shards
from simflow_plugin.preparing.cropped_images import Preparation, prepare
from simflow_plugin.registry import Part
from simflow_plugin.runs.run_lock import RunLock


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


def interrupt(wanted: Preparation, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a preparation and end it in its first shard."""
    with monkeypatch.context() as patch:
        patch.setattr(cropped_images, "write_shard", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(wanted, folder, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".tar"}


def training_part(out: Path, cache: Path) -> Part:
    """The data set that prepared shards are."""
    shards = {"shards": str(out / "train-*.tar"), "test_shards": str(out / "test-*.tar")}
    return Part.model_validate({"name": "webdataset", **shards, "cache": str(cache)})


def test_training_reads_the_images_labels_and_class_names_that_were_prepared(tmp_path):
    source = make_folder(tmp_path / "source")
    prepare(preparation(source), tmp_path / "out", 1)
    for split in ("train", "test"):
        before = preparation(source).dataset(split)
        part = training_part(tmp_path / "out", tmp_path / "cache")
        after = part.build(registry.DATASETS, DataContext(16, split))
        assert after.class_names == before.class_names == ["ant", "zebra"]
        assert len(after) == len(before) == 10
        for index in range(10):
            assert torch.equal(after[index].image, before[index].image)
            assert after[index].label == before[index].label


def test_names_stay_with_their_numbers_where_they_are_in_no_alphabetical_order(tmp_path):
    prepare(preparation(make_folder(tmp_path / "source")), tmp_path / "out", 1)
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(card | {"classes": ["zebra", "ant"]}))
    part = training_part(tmp_path / "out", tmp_path / "cache")
    assert part.build(registry.DATASETS, DataContext(16, "train")).class_names == ["zebra", "ant"]


def test_processes_do_not_change_a_byte_nor_need_to_know_the_part_by_name(tmp_path, monkeypatch):
    source = make_folder(tmp_path / "source")
    known_here = Part.model_validate({"name": "registered_by_the_caller", "root": str(source)})
    dataset, by_name = Preparation.dataset, preparation(source)
    monkeypatch.setattr(Preparation, "dataset", lambda self, split: dataset(by_name, split))
    prepare(Preparation(known_here, 16, 3), tmp_path / "one", 1)
    prepare(Preparation(known_here, 16, 3), tmp_path / "two", 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 8
    cards = [(tmp_path / name / "dataset.json").read_bytes() for name in ("one", "two")]
    assert cards[0] == cards[1]


def test_interrupted_preparation_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    source, calls = make_folder(tmp_path / "source"), []
    prepare(preparation(source), tmp_path / "whole", 1)
    write = cropped_images.write_shard

    def killed(*of):
        calls.append(of[-1].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*of)

    monkeypatch.setattr(cropped_images, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(preparation(source), tmp_path / "out", 1)
    assert not (tmp_path / "out" / "dataset.json").exists()
    (tmp_path / "out" / calls[0]).write_bytes(b"torn")  # as a disk that lost power may leave it
    prepare(preparation(source), tmp_path / "out", 1)
    assert calls.count(calls[1]) == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    left, expected = ({path.name for path in (tmp_path / name).iterdir()} for name in ("out", "whole"))
    assert left == expected


def test_other_settings_and_a_finished_folder_are_refused(tmp_path, monkeypatch):
    source = make_folder(tmp_path / "source")
    interrupt(preparation(source), tmp_path / "out", monkeypatch)
    with pytest.raises(RunDirectoryError, match="begun with image_size 16, and this is 8"):
        prepare(preparation(source, image_size=8), tmp_path / "out", 1)
    prepare(preparation(source), tmp_path / "out", 1)
    with pytest.raises(RunDirectoryError, match="not empty"):
        prepare(preparation(source), tmp_path / "out", 1)


def test_damaged_images_are_counted_named_and_bounded(tmp_path):
    source = make_folder(tmp_path / "source")
    (source / "train" / "ant" / "2.png").write_bytes(b"no image")
    command = ["prepare", str(source), "--out", str(tmp_path / "out"), "--size", "16", "--workers", "1"]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    train = json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]["train"]
    assert (train["images"], train["images_by_class"]) == (9, {"ant": 4, "zebra": 5})
    assert "2.png" in train["damaged"][0]
    for file in ("dataset.json", "README.md"):
        text = (tmp_path / "out" / file).read_text()
        assert "2.png" in text
        assert str(tmp_path) not in text  # a card is passed on
    (source / "train" / "ant" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 10 images are corrupt"):
        prepare(preparation(source), tmp_path / "again", 1)


def test_refusal_of_damaged_images_comes_with_their_shard_and_ends_when_more_are_allowed(tmp_path):
    source = make_folder(tmp_path / "source")
    for number in (0, 1):
        (source / "train" / "ant" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 10 images are corrupt"):
        prepare(preparation(source), tmp_path / "out", 1)
    assert [*contents(tmp_path / "out")] == ["train-000000.tar"]
    part = Part.model_validate(
        {**preparation(source).data.options, "name": "image_folder"} | {"max_corrupt_share": 0.5}
    )
    card = prepare(Preparation(part, 16, 3), tmp_path / "out", 1)
    assert len(card["splits"]["train"]["damaged"]) == 2


def test_damaged_images_of_several_workers_are_counted_as_soon_as_they_are_found(tmp_path, monkeypatch):
    """The first shard waits until the damage of the second has been counted."""
    counted = threading.Event()

    def write(shard):
        damaged = ["a.png: no image"] if shard.name == "1" or not counted.wait(30) else []
        return shards.ShardFacts(shard.name, 0, "", 0, damaged)

    monkeypatch.setattr(shards, "ProcessPoolExecutor", lambda num, _, **of: ThreadPoolExecutor(num, **of))
    monkeypatch.setattr(shards, "_in_worker", [])
    monkeypatch.setattr(shards, "check_corrupt", lambda *_: counted.set())
    found = shards.write_missing("", range(2), shards.shards_of("{}", 2, 1), tmp_path, write, num_workers=2)
    assert [(facts.name, len(facts.damaged)) for facts in found] == [("0", 0), ("1", 1)]


def test_image_that_could_not_be_read_for_a_while_is_read_again(tmp_path, monkeypatch):
    source = make_folder(tmp_path / "source")
    prepare(preparation(source), tmp_path / "whole", 1)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "read_image_file", Mock(side_effect=CorruptImage("the disk is away")))
        with pytest.raises(DataError, match="are corrupt"):
            prepare(preparation(source), tmp_path / "out", 1)
    prepare(preparation(source), tmp_path / "out", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_other_images_than_it_was_begun_with_are_refused(tmp_path, monkeypatch, change):
    source = make_folder(tmp_path / "source")
    interrupt(preparation(source), tmp_path / "out", monkeypatch)
    path = source / "train" / "zebra" / "4.png"
    path.unlink() if change == "removed" else path.write_bytes(
        (source / "val" / "ant" / "0.png").read_bytes()
    )
    with pytest.raises(RunDirectoryError, match="begun with other images"):
        prepare(preparation(source), tmp_path / "out", 1)


def test_second_process_is_refused_while_the_first_fills_the_folder(tmp_path, monkeypatch):
    source = make_folder(tmp_path / "source")
    interrupt(preparation(source), tmp_path / "out", monkeypatch)
    lock = RunLock(tmp_path / "out")
    with pytest.raises(RunDirectoryError, match="another process is writing it"):
        prepare(preparation(source), tmp_path / "out", 1)
    lock.release()
    prepare(preparation(source), tmp_path / "out", 1)
    assert not (tmp_path / "out" / ".lock").exists()


def test_facts_of_a_shard_are_of_what_this_call_wrote(tmp_path, monkeypatch):
    dataset = preparation(make_folder(tmp_path / "source")).dataset("train")
    (tmp_path / "out").mkdir()
    (shard,) = shards.shards_of("train-{:06d}.tar", len(dataset), 100)
    replace = os.replace

    def replaced_at_once(part: Path, path: Path) -> None:
        replace(part, path)
        if path.suffix == ".tar":
            path.write_bytes(b"of another process")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replaced_at_once)
        facts = cropped_images.write_shard(dataset, tmp_path / "out", "png", shard)
    assert shards.finished(shard, tmp_path / "out") is None
    assert facts.bytes > 100


def test_card_names_no_folder_of_a_list_and_leaves_class_names_alone(tmp_path):
    prepare(preparation(make_folder(tmp_path / "source")), tmp_path / "first", 1)
    shards, cache = [str(tmp_path / "first" / "train-*.tar")], str(tmp_path / "cache")
    data = {"name": "webdataset", "shards": shards, "cache": cache, "test_share": 0.2}
    prepare(Preparation(Part.model_validate(data), 16, 9), tmp_path / "out", 1)
    for file in ("dataset.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "out" / file).read_text()
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["data"]["shards"] == ["train-*.tar"]


def test_messages_lose_the_folders_of_the_data_set_and_nothing_else():
    part = Part.model_validate(
        {"name": "image_folder", "root": "/data/cats", "more": [{"shards": "/disk/*/a.tar"}]}
    )
    folders = cropped_images._local_folders(part)
    shown = [
        cropped_images._without_folders(text, folders)
        for text in ("/data/cats/a/1.png: no", "cannot read '/disk/x/a.tar'")
    ]
    assert shown == ["a/1.png: no", "cannot read 'x/a.tar'"]
    assert cropped_images._without_folders("on/data/cats/1.png: no", folders) == "on/data/cats/1.png: no"
