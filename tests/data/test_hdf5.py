import json
import pickle

import pytest
import torch

from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.hdf5 import Hdf5Images
from simflow_plugin.data.images import CorruptImage
from simflow_plugin.data.loader import make_loader
from simflow_plugin.errors import DataError
from tests.data.makers import CORRUPT, png, write_hdf5


def load(root, split="train", **options) -> Hdf5Images:
    return Hdf5Images(Hdf5Images.Options(root=str(root), **options), DataContext(16, split))


@pytest.fixture
def twenty(tmp_path):
    return write_hdf5(tmp_path, [png(value) for value in range(20)], [value % 4 for value in range(20)])


def test_images_and_labels_belong_together(twenty):
    dataset = load(twenty, test_share=0.2)
    assert len(dataset) == 16
    assert dataset.num_classes == 4
    assert all(int(dataset[i].image[0, 0, 0]) % 4 == dataset[i].label for i in range(16))


def test_own_test_root_is_used_whole(twenty, tmp_path):
    write_hdf5(tmp_path / "val", [png(7), png(8)], [0, 1])
    dataset = load(twenty, "test", test_root=str(tmp_path / "val"))
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.num_classes == 4


def test_file_without_labels_is_unlabelled(tmp_path):
    dataset = load(write_hdf5(tmp_path, [png(value) for value in range(30)], None))
    assert dataset.num_classes is None
    assert dataset[0].label == NO_LABEL


def test_processes_read_on_their_own(twenty):
    dataset = load(twenty, test_share=0.2)
    dataset[0]
    alone = [batch.images for batch in make_loader(dataset, 4, 0, 0, 4)]
    helped = [batch.images for batch in make_loader(dataset, 4, 0, 0, 4, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_survives_pickling_with_an_open_file(twenty):
    dataset = load(twenty, test_share=0.2)
    expected = dataset[3].image
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3].image, expected)


def test_corrupt_image_is_named(tmp_path):
    dataset = load(write_hdf5(tmp_path, [CORRUPT] * 30, None))
    with pytest.raises(CorruptImage, match=r"images\.h5:00000/img"):
        dataset[0]


@pytest.mark.parametrize("file", ["images.h5", "images_h5.json"])
def test_missing_file_is_named(twenty, file):
    (twenty / file).unlink()
    with pytest.raises(DataError, match=f"{file}: missing"):
        load(twenty)


def test_damaged_file_is_named(twenty):
    content = (twenty / "images.h5").read_bytes()
    (twenty / "images.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        load(twenty)


def test_missing_labels_are_counted(tmp_path):
    write_hdf5(tmp_path, [png(value) for value in range(5)], [0, 1, 0])
    with pytest.raises(DataError, match="2 of 5 images have no label"):
        load(tmp_path)


def test_listing_without_images_is_refused(twenty):
    (twenty / "images_h5.json").write_text(json.dumps(["dataset.json"]))
    with pytest.raises(DataError, match="lists no image"):
        load(twenty)
