import json
import pickle

import h5py
import numpy as np
import pytest
import torch

from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.hdf5 import Hdf5Images, read_labels, read_names
from simflow_plugin.data.loader import make_loader
from simflow_plugin.data.order import GlobalBatches
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
    alone = [batch.images for batch in make_loader(dataset, GlobalBatches(4), 0, range(4))]
    helped = [batch.images for batch in make_loader(dataset, GlobalBatches(4), 0, range(4), num_workers=2)]
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


FIRST = "00000/img00000000.png"


def relabel(root, document: str) -> None:
    """Write another `dataset.json` into the file of images."""
    with h5py.File(root / "images.h5", "r+") as file:
        del file["dataset.json"]
        file.create_dataset("dataset.json", data=np.array(document.encode(), dtype="S"))


def test_missing_labels_are_counted(tmp_path):
    write_hdf5(tmp_path, [png(value) for value in range(5)], [0, 1, 0])
    with pytest.raises(DataError, match="2 of 5 images have no label"):
        load(tmp_path)


@pytest.mark.parametrize("label", ["null", "-7", "0.5", '"cat"', "1e400", "123456789012345678901234567890"])
def test_label_that_is_no_number_is_refused_by_the_name_of_its_image(twenty, label):
    listed = json.dumps({"labels": [[f"00000/img{n:08d}.png", n % 4] for n in range(20)]})
    relabel(twenty, listed.replace(f'"{FIRST}", 0', f'"{FIRST}", {label}'))
    with pytest.raises(DataError, match=rf"dataset\.json: {FIRST}: its label is .*expected a whole number"):
        load(twenty)
    assert load(twenty, labels=False)[0].label == NO_LABEL


def test_unknown_among_classes_is_refused_by_the_name_of_its_image(twenty):
    listed = [[f"00000/img{n:08d}.png", n % 4 or -1] for n in range(20)]
    relabel(twenty, json.dumps({"labels": listed}))
    with pytest.raises(DataError, match=f"5 of 20 images have no label, such as {FIRST}"):
        load(twenty)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"labels": {"a": 1}}', r"holds \{'a': 1\}, expected a list of \[name, label\]"),
        ('{"labels": "x"}', r"holds 'x', expected a list of \[name, label\]"),
        ('{"labels": [["a", 1], 7]}', r"entry 1 is 7, expected a list of \[name, label\]"),
        ('{"labels": [["a"]]}', r"entry 0 is \['a'\], expected"),
        ('{"labels": [[1, 2]]}', r"entry 0 is \[1, 2\], expected"),
        ("[]", r"holds \[\], expected a mapping with `labels`"),
        ('{"labels": {', "damaged: "),
        ('{"labels": ' + "[" * 100_000, "damaged: "),
    ],
)
def test_labels_of_another_form_are_refused(twenty, document, said):
    relabel(twenty, document)
    with pytest.raises(DataError, match=rf"images\.h5:dataset\.json: (`labels`: )?{said}"):
        load(twenty)


@pytest.mark.parametrize("document", ["{}", '{"labels": null}', '{"labels": []}', '{"labels": {}}'])
def test_empty_labels_are_none(twenty, document):
    relabel(twenty, document)
    assert read_labels(twenty, [FIRST]) is None


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        ("{}", r"holds \{\}, expected a list of names"),
        ("null", "holds None, expected a list of names"),
        ('["a.png", 2]', "entry 1 is 2, expected a list of names"),
        ('[["a.png"]]', r"entry 0 is \['a.png'\], expected"),
        ("[" * 100_000, "damaged: "),
        ("", "damaged: "),
        ('["a.png", "a.png"]', "lists a.png twice"),
        ('["dataset.json"]', "lists no image"),
    ],
)
def test_listing_of_another_form_or_without_images_is_refused(twenty, listing, said):
    (twenty / "images_h5.json").write_text(listing)
    with pytest.raises(DataError, match=rf"images_h5\.json: {said}"):
        load(twenty)


def test_name_with_a_lone_surrogate_is_read(twenty):
    (twenty / "images_h5.json").write_text(r'["\ud800.png"]')
    relabel(twenty, r'{"labels": [["\ud800.png", 3]]}')
    assert read_names(twenty) == ["\ud800.png"]
    assert read_labels(twenty, ["\ud800.png"]) == [3]


STORED = {
    "nothing": lambda file: None,
    "a group": lambda file: file.create_group(FIRST),
    "numbers": lambda file: file.create_dataset(FIRST, data=np.ones((4, 32, 32), np.float32)),
    "an empty data set": lambda file: file.create_dataset(FIRST, data=h5py.Empty("S1")),
    "2 GiB": lambda file: file.create_dataset(FIRST, shape=(1 << 31,), dtype=np.uint8),
    "another file's image": lambda file: file.update({FIRST: h5py.ExternalLink("other.h5", "/secret")}),
    "another file's folder": lambda file: file.update({"00000": h5py.ExternalLink("other.h5", "/")}),
}


@pytest.mark.parametrize("stored", STORED)
def test_what_is_no_image_is_named(twenty, stored):
    with h5py.File(twenty / "images.h5", "r+") as file:
        del file["00000" if "folder" in stored else FIRST]
        STORED[stored](file)
    dataset = load(twenty, test_share=0.01)
    with pytest.raises(CorruptImage, match=rf"images\.h5:{FIRST}: "):
        dataset[0]


def test_bytes_stored_as_numbers_are_read_to_their_last_zero(twenty):
    with h5py.File(twenty / "images.h5", "r+") as file:
        for v in range(20):
            name = f"00000/img{v:08d}.png"
            del file[name]
            file[name] = np.frombuffer(png(v) + b"\0\0", dtype=np.uint8)
    dataset = load(twenty, test_share=0.01)
    assert dataset.read_content(3).endswith(b"\0\0")
    assert [int(dataset[i].image[0, 0, 0]) for i in range(20)] == list(range(20))


def arrays(root, make):
    with h5py.File(root / "images.h5", "w") as file:
        for v in range(4):
            file[f"{v}.npy"] = make(v)
    (root / "images_h5.json").write_text(json.dumps([f"{v}.npy" for v in range(4)]))
    return load(root, test_share=0.01)


def test_arrays_of_pixels_are_images(tmp_path):
    assert arrays(tmp_path, lambda v: np.full((3, 20, 20), v, np.uint8))[2].image.unique().tolist() == [2]
    assert arrays(tmp_path, lambda v: np.full((1, 20, 20), v, np.uint8))[2].image.unique().tolist() == [2]


@pytest.mark.parametrize(
    "value",
    [
        np.ones((4, 32, 32), np.float32),
        np.ones((3, 20, 20), np.float64),
        np.ones((20, 20), np.uint8),
        np.ones((20, 20, 3), np.uint8),
        np.ones((3, 0, 20), np.uint8),
        np.uint8(3),
        np.array(b"text"),
    ],
    ids=lambda value: f"{value.dtype} {value.shape}",
)
def test_array_of_another_shape_or_type_is_named(tmp_path, value):
    dataset = arrays(tmp_path, lambda v: value)
    with pytest.raises(CorruptImage, match=r"images\.h5:0\.npy: .*expected uint8 \(3, H, W\)"):
        dataset[0]


def test_class_that_only_the_test_root_has_is_refused(twenty, tmp_path):
    write_hdf5(tmp_path / "val", [png(7), png(8)], [0, 9])
    with pytest.raises(DataError, match="no training image has: `9`"):
        load(twenty, "test", test_root=str(tmp_path / "val"))
