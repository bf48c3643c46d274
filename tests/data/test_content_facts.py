"""What a cache of a data set's images depends on: equal for the same images, another once one image is replaced."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from simflow_plugin.contracts import NO_LABEL, DataContext, Example
from simflow_plugin.data.disk_cache import tensors_digest
from simflow_plugin.data.fashion_mnist import FashionMnist
from simflow_plugin.data.feature_cache import dataset_facts
from simflow_plugin.data.hdf5 import Hdf5Images
from simflow_plugin.data.image_folder import ImageFolder
from simflow_plugin.data.webdataset import WebDataset
from simflow_plugin.errors import DataError
from tests.data.makers import fashion_folder, png, write_hdf5, write_shard

CONTEXT = DataContext(28, "train")


def write_folder(root: Path, first: int) -> None:
    root.mkdir(exist_ok=True)
    for number in range(10):
        (root / f"{number}.png").write_bytes(png(first if number == 0 else number))


def write_h5(root: Path, first: int) -> None:
    write_hdf5(root, [png(first), *(png(value) for value in range(1, 10))], None)


def write_tar(root: Path, first: int) -> None:
    write_shard(root / "a.tar", [(f"{n}", {"png": png(n or first)}) for n in range(10)])


def write_table(root: Path, first: int) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": png(n or first), "path": None} for n in range(10)]
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(str(root / "table"))


def write_fashion(root: Path, first: int) -> None:
    fashion_folder(root, num=12 if first == 50 else 13)


def load_table(root: Path):
    from simflow_plugin.data.huggingface import HuggingFaceImages

    return HuggingFaceImages(HuggingFaceImages.Options(path=str(root / "table"), test_share=0.2), CONTEXT)


SOURCES = {
    "image_folder": (write_folder, lambda root: ImageFolder(ImageFolder.Options(root=str(root)), CONTEXT)),
    "hdf5": (write_h5, lambda root: Hdf5Images(Hdf5Images.Options(root=str(root)), CONTEXT)),
    "webdataset": (
        write_tar,
        lambda root: WebDataset(
            WebDataset.Options(shards=str(root / "a.tar"), cache=str(root / "cache")), CONTEXT
        ),
    ),
    "huggingface": (write_table, load_table),
    "fashion-mnist": (
        write_fashion,
        lambda root: FashionMnist(FashionMnist.Options(root=str(root)), CONTEXT),
    ),
}
every_source = pytest.mark.parametrize("name", SOURCES)


def facts(name: str, folder: Path, monkeypatch) -> dict:
    """Return the facts of the data set in `folder`, its options the same relative path from everywhere."""
    monkeypatch.chdir(folder)
    dataset = SOURCES[name][1](Path("images"))
    return dataset_facts(name, {"root": "images"}, dataset, "train", 28)


def write(name: str, folder: Path, first: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    SOURCES[name][0](folder / "images", first)


@every_source
def test_the_same_images_have_the_same_facts(name, tmp_path, monkeypatch):
    write(name, tmp_path / "a", 50)
    assert facts(name, tmp_path / "a", monkeypatch) == facts(name, tmp_path / "a", monkeypatch)


@every_source
def test_another_folder_of_the_same_name_has_other_facts(name, tmp_path, monkeypatch):
    write(name, tmp_path / "a", 50)
    write(name, tmp_path / "b", 51)
    first, second = (facts(name, tmp_path / folder, monkeypatch) for folder in ("a", "b"))
    assert first["content"] != second["content"]


def test_replaced_file_of_the_same_size_has_other_facts(tmp_path, monkeypatch):
    write("image_folder", tmp_path, 50)
    before = facts("image_folder", tmp_path, monkeypatch)
    for file in (tmp_path / "images").iterdir():
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert facts("image_folder", tmp_path, monkeypatch) != before


class ThirdParty:
    """Five images of one value, and no more than the contract asks for."""

    def __init__(self, value: int = 0, class_names: list[str] | None = None) -> None:
        self.value, self.class_names = value, class_names
        self.num_classes = None if class_names is None else len(class_names)

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Example:
        return Example(torch.full((3, 4, 4), self.value, dtype=torch.uint8), NO_LABEL)


def test_missing_library_of_a_data_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install"):
        load_table(tmp_path)


def test_images_of_a_third_party_data_set_are_probed():
    one, again, other = (dataset_facts("own", {}, ThirdParty(value), "train", 4) for value in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    "other",
    [{"a": torch.ones(2, 2)}, {"b": torch.ones(4)}, {"a": torch.ones(4).half()}, {"a": 2 * torch.ones(4)}],
    ids=["shape", "name", "type", "value"],
)
def test_digest_depends_on_shape_name_type_and_value(other):
    assert tensors_digest(other) != tensors_digest({"a": torch.ones(4)})


def test_digest_reads_every_type_of_tensor():
    kinds = {"scalar": torch.tensor(1.0), "half": torch.ones(3, dtype=torch.bfloat16), "none": torch.ones(0)}
    strided = {"strided": torch.arange(6).reshape(2, 3).T}
    assert len(tensors_digest(kinds | strided)) == 64
