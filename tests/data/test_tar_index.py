"""Shards that are cut, joined, out of order, or hold something else than images and numbers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.tar_index import index_shard
from simflow_plugin.data.webdataset import WebDataset
from simflow_plugin.errors import DataError
from tests.data.makers import numbered_shard, png, write_members, write_shard


def load(path: Path, split: str = "train", **options) -> WebDataset:
    options = {"shards": str(path), "test_share": 0.01, "cache": str(path.parent / "cache"), **options}
    return WebDataset(WebDataset.Options(**options), DataContext(16, split))


def pictures(num: int, label: str = "cls") -> list[tuple[str, bytes]]:
    labels = [(f"{v:03d}.{label}", str(v % 2).encode()) for v in range(num)]
    return [entry for v in range(num) for entry in ((f"{v:03d}.png", png(v)), labels[v])]


def two_classes(path: Path, first: bytes, second: bytes) -> WebDataset:
    """Four pictures whose labels alternate."""
    samples = [(f"{v}", {"png": png(v), "cls": (first, second)[v % 2]}) for v in range(4)]
    return load(write_shard(path / "a.tar", samples))


def end_of(path: Path) -> int:
    """Bytes of a shard with the two blocks of zeros that end it."""
    with tarfile.open(path) as archive:
        archive.getmembers()
        return archive.offset + 2 * 512


def test_every_cut_is_noticed(tmp_path):
    whole = numbered_shard(tmp_path / "a.tar", range(8)).read_bytes()
    end = end_of(tmp_path / "a.tar")
    cuts = np.random.default_rng(0).integers(1, end, 150).tolist()
    for cut in [*cuts, *range(512, end, 512)]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.tar"):
            index_shard(tmp_path / "cut.tar")


def test_shard_that_ends_with_two_blocks_of_zeros_is_whole(tmp_path):
    path = numbered_shard(tmp_path / "a.tar", range(8))
    path.write_bytes(path.read_bytes()[: end_of(path)])
    assert len(index_shard(path).keys) == 8


def test_damaged_header_between_members_is_noticed(tmp_path):
    path = numbered_shard(tmp_path / "a.tar", range(8))
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[5].offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 64
    path.write_bytes(content)
    with pytest.raises(DataError, match="cut off or damaged"):
        index_shard(path)


def test_joined_shards_are_refused(tmp_path):
    first, second = (numbered_shard(tmp_path / name, range(4)) for name in ("a.tar", "b.tar"))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match="data after the end of the archive"):
        index_shard(first)


@pytest.mark.parametrize("size", [-1, 1 << 40])
def test_impossible_size_is_refused(tmp_path, size):
    info = tarfile.TarInfo("a.png")
    info.size = size
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(DataError, match=r"a\.tar"):
        index_shard(tmp_path / "a.tar")


def test_members_that_lie_apart_are_put_together(tmp_path):
    entries = pictures(10)
    path = write_members(tmp_path / "a.tar", entries[::2] + entries[1::2])
    dataset = load(path)
    assert [dataset[i].label for i in range(10)] == [v % 2 for v in range(10)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("001.png", r"two members are called 001\.png"),
        ("001.jpg", r"`001` has two images: \.png and \.jpg.*data\.image_member"),
    ],
)
def test_second_image_of_a_sample_is_refused(tmp_path, name, message):
    path = write_members(tmp_path / "a.tar", [*pictures(4), (name, png(9))])
    with pytest.raises(DataError, match=message):
        index_shard(path)


def test_hidden_members_are_counted(tmp_path):
    entries = [*pictures(4), ("._001.png", b"fork"), ("__MACOSX/x/002.png", b"fork"), (".DS_Store", b"x")]
    assert index_shard(write_members(tmp_path / "a.tar", entries)).ignored == {"hidden or system members": 3}


def test_dots_in_keys_are_explained_and_counted(tmp_path):
    path = write_members(tmp_path / "a.tar", [*pictures(4), ("a.b.png", png(1)), ("a.c.png", png(1))])
    assert index_shard(path).ignored == {"images with more than one dot in the name": 2}
    with pytest.raises(DataError, match="2 images have more dots in their names: a key ends at the first"):
        index_shard(write_members(tmp_path / "b.tar", [("a.b.png", png(1)), ("a.c.png", png(1))]))


def test_member_with_dots_that_is_asked_for_is_the_image(tmp_path):
    path = write_members(
        tmp_path / "a.tar", [("1.rgb.png", png(1)), ("1.seg.png", png(2)), ("2.rgb.png", png(3))]
    )
    assert index_shard(path, "rgb.png").sizes.tolist() == [len(png(1)), len(png(3))]


@pytest.mark.parametrize("ending", ["cls", "label", "txt"])
def test_numbers_beside_images_are_labels(tmp_path, ending):
    dataset = load(write_members(tmp_path / "a.tar", pictures(10, ending)))
    assert [dataset[i].label for i in range(10)] == [v % 2 for v in range(10)]


def test_words_in_cls_are_class_names(tmp_path):
    dataset = two_classes(tmp_path, b"dog", b"cat\n")
    assert dataset.class_names == ["cat", "dog"]
    assert dataset[0].label == 1


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("cls", b""),
        ("cls", b"\x80\x00\x01"),
        ("cls", b"9" * 5000),
        ("cls", b"1" * (1 << 21)),
        ("json", b"not json"),
        ("json", b"[" * 100_000),
        ("json", b"[1]"),
        ("json", b'{"label": null}'),
        ("json", b'{"label": 1e999}'),
        ("label", b"\xff\xfe3\x00"),
    ],
    ids=lambda value: repr(value)[:16],
)
def test_label_that_cannot_be_read_is_refused_by_the_name_of_its_sample(tmp_path, ending, content):
    others = pictures(6, "cls" if ending != "json" else "json.gz")
    path = write_members(tmp_path / "a.tar", [*others, ("odd.png", png(1)), (f"odd.{ending}", content)])
    with pytest.raises(DataError, match=r"a\.tar:odd \(odd\.[a-z]+\): .*data\.labels: false"):
        load(path)
    assert load(path, labels=False)[0].label == NO_LABEL


def test_label_of_a_milliard_sizes_no_table(tmp_path):
    assert two_classes(tmp_path, b"5", b"1000000000").class_names == ["5", "1000000000"]


def test_class_that_only_the_test_shards_have_is_refused(tmp_path):
    train = write_members(tmp_path / "a.tar", pictures(4))
    test = write_shard(tmp_path / "b.tar", [("1", {"png": png(1), "json": b'{"label": 7}'})])
    with pytest.raises(DataError, match="no training image has: `7`"):
        load(train, "test", test_shards=str(test))


def test_shard_for_training_and_testing_is_refused(tmp_path):
    path = write_members(tmp_path / "a.tar", pictures(4))
    with pytest.raises(DataError, match="tested on what was trained on"):
        load(path, "test", test_shards=str(path))


def test_shard_that_is_listed_twice_is_read_once(tmp_path):
    path = write_members(tmp_path / "a.tar", pictures(4))
    assert len(load(path, shards=[str(path), str(tmp_path / "*.tar")])) == 4
