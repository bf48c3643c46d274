"""Shards: the same samples whatever made them, resumed where they broke off, never read when torn."""

import logging

import numpy as np
import pytest

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.sample_files import save_samples
from simflow_plugin.evaluation.sample_shards import SampleShards


class Drawer:
    """Images that are a function of their index; counts what it drew."""

    def __init__(self):
        self.drawn = []

    def __call__(self, indices):
        self.drawn += indices
        images = np.stack([np.full((4, 4, 3), index % 256, dtype=np.uint8) for index in indices])
        return images, np.array([index % 3 for index in indices])


def read(shards):
    images, labels = zip(*shards.read(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_samples_are_in_order_and_as_many_as_asked(tmp_path):
    shards = SampleShards(tmp_path, 23, shard_size=10)
    shards.make_missing(Drawer(), batch_size=4)
    images, labels = read(shards)
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(23))
    np.testing.assert_array_equal(labels, np.arange(23) % 3)


def test_processes_share_the_work_and_make_the_same(tmp_path):
    one, two = SampleShards(tmp_path / "one", 50, 10), SampleShards(tmp_path / "two", 50, 10)
    one.make_missing(Drawer(), 7)
    drawers = [Drawer(), Drawer()]
    for rank, drawer in enumerate(drawers):
        two.make_missing(drawer, 3, rank, 2)
    np.testing.assert_array_equal(read(one)[0], read(two)[0])
    assert not set(drawers[0].drawn) & set(drawers[1].drawn)


def test_interrupted_evaluation_resumes(tmp_path):
    shards = SampleShards(tmp_path, 30, 10)

    def interrupted(indices):
        if indices[0] >= 20:
            raise KeyboardInterrupt
        return Drawer()(indices)

    with pytest.raises(KeyboardInterrupt):
        shards.make_missing(interrupted, 10)
    drawer = Drawer()
    shards.make_missing(drawer, 10)
    assert drawer.drawn == list(range(20, 30))


@pytest.mark.parametrize(("count", "drawn"), [(30, range(10, 30)), (12, [])])
def test_more_samples_keep_the_first_ones_and_fewer_draw_nothing(tmp_path, count, drawn):
    SampleShards(tmp_path, 15, 10).make_missing(Drawer(), 10)
    drawer, other = Drawer(), SampleShards(tmp_path, count, 10)
    other.make_missing(drawer, 10)
    assert drawer.drawn == list(drawn)
    assert len(read(other)[0]) == count


def test_corrupted_shard_is_not_read_but_reported_and_made_again(tmp_path, caplog):
    shards = SampleShards(tmp_path, 10, 10)
    shards.make_missing(Drawer(), 10)
    content = bytearray(shards.path(0).read_bytes())
    content[200] ^= 1
    shards.path(0).write_bytes(content)
    with pytest.raises(EvaluationError, match=r"shard_00000\.npz: does not match its checksum"):
        read(shards)
    with caplog.at_level(logging.WARNING):
        shards.make_missing(Drawer(), 10)
    assert "does not match its checksum" in caplog.text
    assert len(read(shards)[0]) == 10


def test_npz_is_what_the_adm_suite_reads(tmp_path):
    shards = SampleShards(tmp_path / "shards", 23, 10)
    shards.make_missing(Drawer(), 10)
    save_samples(tmp_path / "samples.npz", 23, shards.read())
    with np.load(tmp_path / "samples.npz") as file:
        assert sorted(file.files) == ["arr_0", "labels"]
        assert file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], read(shards)[0])
        np.testing.assert_array_equal(file["labels"], read(shards)[1])


@pytest.mark.parametrize(
    ("class_names", "parts"),
    [
        (None, ["class0", "class1", "class2"]),
        (["T-shirt/top", "größe", "../x"], ["T-shirt-top", "größe", "x"]),
    ],
)
def test_png_files_are_named_by_index_and_class(tmp_path, class_names, parts):
    save_samples(tmp_path / "png", 4, [Drawer()(range(4))], class_names=class_names)
    names = [f"00000{index}_{parts[index % 3]}.png" for index in range(4)]
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == names
