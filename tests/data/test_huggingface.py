import sys

import pytest

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.huggingface import HuggingFaceImages
from simflow_plugin.data.order import GlobalBatches
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
    loaders = [make_loader(dataset, GlobalBatches(len(dataset)), 0, range(1)) for dataset in (train, test)]
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


def table(root, columns, features, name="table"):
    """Write a table of pictures with the columns given; return its folder."""
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    num = len(next(iter(columns.values())))
    columns = {"img": [{"bytes": png(v), "path": None} for v in range(num)], **columns}
    features = datasets.Features({"img": datasets.Image(), **features})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(root / name))
    return root / name


def splits(root, train, test):
    """Write a data set of two splits, (names, label numbers) each; return its folder."""
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    tables = {}
    for split, (names, numbers) in (("train", train), ("test", test)):
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        columns = {"img": [{"bytes": png(v), "path": None} for v in range(len(numbers))], "label": numbers}
        tables[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(tables).save_to_disk(str(root / "both"))
    return root / "both"


def test_column_of_numbers_is_understood(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    folder = table(tmp_path, {"label": [207, 5] * 4}, {"label": datasets.Value("int32")})
    assert load(folder).class_names == ["5", "207"]


def test_column_of_words_is_understood(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    dataset = load(table(tmp_path, {"class": ["dog", "cat"] * 4}, {"class": datasets.Value("string")}))
    assert dataset.class_names == ["cat", "dog"]
    assert {dataset[i].label for i in range(6) if int(dataset[i].image[0, 0, 0]) % 2} == {0}


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1, 0, None, 1], "int64", "None"),
        ([0.5, 1.0, 2.0, 1.0], "float32", "0.5"),
        ([True, False] * 2, "bool", "True"),
    ],
)
def test_label_that_is_no_class_names_its_row(tmp_path, values, kind, shown):
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    with pytest.raises(DataError, match=rf"row \d, column `label`: its label is {shown}"):
        load(table(tmp_path, {"label": values}, {"label": datasets.Value(kind)}))


def test_two_columns_of_images_are_asked_about(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    mask = [{"bytes": png(9), "path": None}] * 8
    folder = table(tmp_path, {"mask": mask}, {"mask": datasets.Image()})
    with pytest.raises(DataError, match="2 columns of images: img, mask. Set data.image_column"):
        load(folder)
    assert load(folder, image_column="mask")[0].image.unique().tolist() == [9]


def test_two_columns_of_classes_are_asked_about(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    kind = datasets.ClassLabel(names=["a", "b"])
    folder = table(tmp_path, {"fine": [0, 1] * 4, "coarse": [0, 1] * 4}, {"fine": kind, "coarse": kind})
    with pytest.raises(DataError, match="fine, coarse. Set data.label_column"):
        load(folder)


def test_names_without_an_image_are_no_classes(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
    names = [f"class {n}" for n in range(1000)]
    folder = table(tmp_path, {"label": [7, 401] * 4}, {"label": datasets.ClassLabel(names=names)})
    assert load(folder).class_names == ["class 7", "class 401"]


def test_split_with_another_order_of_names_is_mapped_by_name(tmp_path):
    folder = splits(tmp_path, (["cat", "dog"], [0, 1, 0, 1]), (["dog", "cat"], [0, 0, 1]))
    assert load(folder, "test", test_split="test").labels.tolist() == [1, 1, 0]


def test_class_that_is_in_the_test_split_only_is_refused(tmp_path):
    folder = splits(tmp_path, (["cat", "dog"], [0, 1, 0, 1]), (["cat", "dog", "emu"], [0, 2]))
    with pytest.raises(DataError, match="1 classes that no training image has: `emu`"):
        load(folder, "test", test_split="test")


def test_split_of_unknown_labels_is_unlabelled(tmp_path):
    folder = splits(tmp_path, (["cat", "dog"], [0, 1, 0, 1]), (["cat", "dog"], [-1, -1]))
    dataset = load(folder, "test", test_split="test")
    assert dataset.labels.tolist() == [-1, -1]
    assert dataset.class_names == ["cat", "dog"]


def test_one_split_for_training_and_testing_is_refused(folder):
    with pytest.raises(DataError, match="tested on what was trained on"):
        load(folder, test_split="train")
