import pytest

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.huggingface import HuggingFaceImages
from simflow_plugin.data.loader import make_loader
from simflow_plugin.data.order import GlobalBatches
from simflow_plugin.errors import DataError
from tests.data.makers import CORRUPT, png

datasets = pytest.importorskip("datasets", reason="needs the `datasets` extra")
CATS, DOGS = ["cat", "dog"], ["dog", "cat"]


def load(path, split="train", **options) -> HuggingFaceImages:
    options = {"test_share": 0.25, **options}
    return HuggingFaceImages(HuggingFaceImages.Options(path=str(path), **options), DataContext(16, split))


def pictures(**columns):
    """A table of pictures, grey value v in row v, beside columns of (values, type)."""
    num = len(next(iter(columns.values()))[0])
    columns = {"img": ([{"bytes": png(v), "path": None} for v in range(num)], datasets.Image()), **columns}
    features = datasets.Features({name: kind for name, (_, kind) in columns.items()})
    return datasets.Dataset.from_dict(
        {name: found for name, (found, _) in columns.items()}, features=features
    )


def saved(table, root):
    """The folder that a table, or one by split, was written to."""
    table.save_to_disk(str(root / "table"))
    return root / "table"


@pytest.fixture
def folder(tmp_path):
    """Eight pictures on disk: grey value v, class v mod 2."""
    return saved(pictures(kind=([0, 1] * 4, datasets.ClassLabel(names=["even", "odd"]))), tmp_path)


def test_columns_are_found_by_their_types(folder):
    dataset = load(folder)
    assert dataset.class_names == ["even", "odd"]
    assert len(dataset) == 6
    image, label = dataset[0]
    assert int(image[0, 0, 0]) % 2 == label


def test_labels_can_be_left_unused(folder):
    assert load(folder, labels=False).num_classes is None


def test_corrupt_cell_is_replaced(tmp_path):
    cells = [{"bytes": CORRUPT if v == 3 else png(v), "path": None} for v in range(8)]
    found = saved(pictures(photo=(cells, datasets.Image())), tmp_path)
    dataset = load(found, image_column="photo", max_corrupt_share=1, test_share=0.01)
    loader = make_loader(dataset, GlobalBatches(8), 0, range(1))
    list(loader)
    assert loader.corrupt == {3}


def test_unknown_column_lists_columns(folder):
    with pytest.raises(DataError, match="img, kind"):
        load(folder, image_column="image")


def test_unreachable_data_set_is_named():
    with pytest.raises(DataError, match="no-such-owner/no-such-data"):
        load("no-such-owner/no-such-data")


@pytest.mark.parametrize(
    ("name", "values", "kind", "classes"),
    [("label", [207, 5], "int32", ["5", "207"]), ("class", ["dog", "cat"], "string", ["cat", "dog"])],
)
def test_column_of_numbers_or_words_is_understood(tmp_path, name, values, kind, classes):
    dataset = load(saved(pictures(**{name: (values * 4, datasets.Value(kind))}), tmp_path))
    assert dataset.class_names == classes
    assert all(int(image[0, 0, 0]) % 2 == 1 - label for image, label in map(dataset.__getitem__, range(6)))


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1, 0, None, 1], "int64", "None"),
        ([0.5, 1.0, 2.0, 1.0], "float32", "0.5"),
        ([True, False] * 2, "bool", "True"),
    ],
)
def test_label_that_is_no_class_names_its_row(tmp_path, values, kind, shown):
    with pytest.raises(DataError, match=rf"row \d, column `label`: its label is {shown}"):
        load(saved(pictures(label=(values, datasets.Value(kind))), tmp_path))


def test_two_columns_of_images_are_asked_about(tmp_path):
    mask = ([{"bytes": png(9), "path": None}] * 8, datasets.Image())
    folder = saved(pictures(mask=mask), tmp_path)
    with pytest.raises(DataError, match="2 columns of images: img, mask. Set data.image_column"):
        load(folder)
    assert load(folder, image_column="mask")[0].image.unique().tolist() == [9]


def test_two_columns_of_classes_are_asked_about(tmp_path):
    kind = datasets.ClassLabel(names=["a", "b"])
    with pytest.raises(DataError, match="fine, coarse. Set data.label_column"):
        load(saved(pictures(fine=([0, 1] * 4, kind), coarse=([0, 1] * 4, kind)), tmp_path))


def test_names_without_an_image_are_no_classes(tmp_path):
    kind = datasets.ClassLabel(names=[f"class {n}" for n in range(1000)])
    assert load(saved(pictures(label=([7, 401] * 4, kind)), tmp_path)).class_names == ["class 7", "class 401"]


def splits(root, **by_split):
    """The folder of several splits, (names, label numbers) each."""
    tables = {
        split: pictures(label=(numbers, datasets.ClassLabel(names=names)))
        for split, (names, numbers) in by_split.items()
    }
    return saved(datasets.DatasetDict(tables), root)


@pytest.mark.parametrize(
    ("names", "numbers", "labels"),
    [(DOGS, [0, 0, 1], [1, 1, 0]), (CATS, [-1, -1], [-1, -1])],
    ids=["another order of names", "unknown labels"],
)
def test_split_is_numbered_by_the_names_of_training(tmp_path, names, numbers, labels):
    folder = splits(tmp_path, train=(CATS, [0, 1, 0, 1]), test=(names, numbers))
    dataset = load(folder, "test", test_split="test")
    assert dataset.labels.tolist() == labels
    assert dataset.class_names == CATS


def test_class_that_is_in_the_test_split_only_is_refused(tmp_path):
    folder = splits(tmp_path, train=(CATS, [0, 1, 0, 1]), test=([*CATS, "emu"], [0, 2]))
    with pytest.raises(DataError, match="1 classes that no training image has: `emu`"):
        load(folder, "test", test_split="test")


def test_one_split_for_training_and_testing_is_refused(folder):
    with pytest.raises(DataError, match="tested on what was trained on"):
        load(folder, test_split="train")
