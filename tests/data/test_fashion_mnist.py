import gzip

import pytest
import torch

from simflow_plugin.contracts import DataContext
from simflow_plugin.data import fashion_mnist
from simflow_plugin.data.fashion_mnist import FashionMnist
from simflow_plugin.errors import DataError
from tests.data.makers import fashion_folder


def load(root, size=32, split="train", **options) -> FashionMnist:
    return FashionMnist(
        FashionMnist.Options(root=str(root) if root else None, **options), DataContext(size, split)
    )


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data in the usual places."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "data"))
    return tmp_path


def test_images_at_32_are_padded_by_black(tmp_path):
    image, label = load(fashion_folder(tmp_path))[7]
    assert image[:, 2:-2, 2:-2].unique().tolist() == [7]
    assert image.sum() == 3 * 28 * 28 * 7
    assert label == 7


@pytest.mark.parametrize("size", [28, 32, 64])
def test_image_has_the_size_asked_for(tmp_path, size):
    assert load(fashion_folder(tmp_path), size)[0].image.shape == (3, size, size)


@pytest.mark.parametrize("place", ["data/fashion-mnist", "debian", "data/FashionMNIST/raw"])
def test_found_in_the_usual_places(nowhere, place):
    fashion_folder(nowhere / place)
    assert len(load(None, split="test")) == 12


def test_uncompressed_files_are_read(tmp_path):
    fashion_folder(tmp_path)
    for path in list(tmp_path.glob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(load(tmp_path)) == 12


def test_missing_data_names_the_places_and_two_ways(nowhere):
    with pytest.raises(DataError) as caught:
        load(None)
    message = str(caught.value)
    for part in ("debian", "data/fashion-mnist", "FashionMNIST/raw", "apt install", "data.download: true"):
        assert part in message


def test_a_wrong_root_is_not_answered_with_other_data(nowhere):
    fashion_folder(nowhere / "debian")
    with pytest.raises(DataError, match="typing_error"):
        load(nowhere / "typing_error")


def test_failed_download_says_what_else_to_do(nowhere, monkeypatch):
    import torchvision

    def fail(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fail)
    with pytest.raises(DataError, match=r"no network.*apt|no network.*Debian"):
        load(None, download=True)


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def unpacked(change):
    """A change of the content that the compression holds."""
    return lambda content: gzip.compress(change(gzip.decompress(content)))


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        (IMAGES, unpacked(lambda idx: b"\0\0\x0d\x03" + idx[4:]), "00000d03, expected 00000803"),
        (IMAGES, unpacked(lambda idx: idx[:6]), r"cut off inside its header \(6 bytes\)"),
        (IMAGES, unpacked(lambda idx: b""), r"cut off inside its header \(0 bytes\)"),
        (IMAGES, unpacked(lambda idx: idx[:-100]), "promises"),
        (LABELS, lambda content: content[:-6], "unreadable"),
        (LABELS, unpacked(lambda idx: idx[:7] + b"\x05" + idx[8:13]), "holds 5, expected 12"),
    ],
    ids=["magic number", "header", "nothing", "pixels", "compression", "number of labels"],
)
def test_damaged_file_is_named(tmp_path, file, spoil, message):
    path = fashion_folder(tmp_path) / file
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path.name}: .*{message}"):
        load(tmp_path)


def test_batch_equals_single_examples(tmp_path):
    dataset = load(fashion_folder(tmp_path))
    images, labels = dataset.read_batch([3, 1, 4])
    assert torch.equal(images, torch.stack([dataset[i].image for i in (3, 1, 4)]))
    assert labels.tolist() == [3, 1, 4]
