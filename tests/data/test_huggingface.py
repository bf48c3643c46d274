import sys

import pytest

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.huggingface import HuggingFaceImages
from simflow_plugin.data.image_files import choose_labels
from simflow_plugin.errors import DataError
from tests.data.makers import CORRUPT, png


def load(path, split="train", **options) -> HuggingFaceImages:
    options = {"test_share": 0.25, **options}
    return HuggingFaceImages(HuggingFaceImages.Options(path=str(path), **options), DataContext(16, split))


@pytest.fixture
def folder(tmp_path):
    """Eight pictures on disk: grey value v, class v mod 2, the last one corrupt."""
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    kinds = datasets.ClassLabel(names=["even", "odd"])
    features = datasets.Features({"img": datasets.Image(), "kind": kinds})
    cells = [{"bytes": png(v) if v < 7 else CORRUPT, "path": None} for v in range(8)]
    columns = {"img": cells, "kind": [v % 2 for v in range(8)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "table"))
    return tmp_path / "table"


def test_columns_are_found_by_their_types(folder):
    dataset = load(folder)
    assert dataset.class_names == ["even", "odd"]
    assert len(dataset) == 6
    image, label = dataset[0]
    assert int(image[0, 0, 0]) % 2 == label


def test_labels_can_be_left_unused(folder):
    assert load(folder, labels=False).num_classes is None


def test_corrupt_cell_is_replaced(folder):
    from simflow_plugin.data.loader import make_loader

    train, test = load(folder, max_corrupt_share=1), load(folder, "test", max_corrupt_share=1)
    loaders = [make_loader(dataset, len(dataset), 0, 0, 1) for dataset in (train, test)]
    for loader in loaders:
        list(loader)
    assert sum(len(loader.corrupt) for loader in loaders) == 1


def test_unknown_column_lists_columns(folder):
    with pytest.raises(DataError, match="img, kind"):
        load(folder, image_column="image")


def test_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install"):
        load("some/name")


def test_unreachable_data_set_is_named():
    pytest.importorskip("datasets", reason="needs the `datasets` extra")
    with pytest.raises(DataError, match="no-such-owner/no-such-data"):
        load("no-such-owner/no-such-data")


def test_labels_that_are_words_are_refused_by_name():
    with pytest.raises(DataError, match=r"here: labels must be whole numbers, found 'cat'"):
        choose_labels("here", ["cat", "dog"], True)
