import pytest

from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.image_folder import ImageFolder
from simflow_plugin.errors import DataError
from tests.data.makers import class_folders, png


def load(root, split="train", **options) -> ImageFolder:
    return ImageFolder(ImageFolder.Options(root=str(root), **options), DataContext(16, split))


def grey_values(dataset: ImageFolder) -> list[int]:
    return [int(dataset[i].image[0, 0, 0]) for i in range(len(dataset))]


def test_subfolders_are_classes(tmp_path):
    dataset = load(class_folders(tmp_path, {"dog": 10, "cat": 10}), test_share=0.2)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.num_classes == 2
    assert len(dataset) == 16
    assert {dataset[i].label for i in range(16)} == {0, 1}


def test_shares_are_disjoint_and_complete(tmp_path):
    class_folders(tmp_path, {"a": 10, "b": 20})
    train, test = (grey_values(load(tmp_path, split, test_share=0.3)) for split in ("train", "test"))
    assert sorted(train + test) == list(range(30))
    assert len(test) == 9


def test_flat_folder_is_unlabelled(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    dataset = load(tmp_path)
    assert dataset.num_classes is None
    assert dataset[0].label == NO_LABEL


@pytest.mark.parametrize("test_folder", ["val", "test"])
def test_own_split_is_used(tmp_path, test_folder):
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    class_folders(tmp_path / test_folder, {"b": 2, "a": 1})
    assert len(load(tmp_path)) == 6
    assert load(tmp_path, "test").labels.tolist() == [0, 1, 1]


def test_only_a_train_folder_is_split_without_overlap(tmp_path):
    class_folders(tmp_path / "train", {"a": 10, "b": 10})
    train, test = (grey_values(load(tmp_path, split, test_share=0.2)) for split in ("train", "test"))
    assert sorted(train + test) == list(range(20))


def test_class_missing_from_test_does_not_shift_the_numbers(tmp_path):
    class_folders(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    class_folders(tmp_path / "val", {"a": 1, "c": 2})
    dataset = load(tmp_path, "test")
    assert dataset.labels.tolist() == [0, 2, 2]
    assert dataset.num_classes == 3


def test_foreign_class_in_test_is_refused(tmp_path):
    class_folders(tmp_path / "train", {"a": 2, "b": 2})
    class_folders(tmp_path / "val", {"z": 2})
    with pytest.raises(DataError, match="`z`"):
        load(tmp_path, "test")


def test_labels_can_be_left_unused(tmp_path):
    dataset = load(class_folders(tmp_path, {"only": 30}), labels=False)
    assert dataset.num_classes is None


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothere: does not exist.*data\.root"):
        load(tmp_path / "nothere")


def test_file_as_root_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        load(tmp_path / "file")


def test_empty_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no images below it"):
        load(tmp_path)


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"one class.*data\.labels: false"):
        load(class_folders(tmp_path, {"only": 30}))


def test_labels_asked_for_in_a_flat_folder_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(DataError, match="no labels"):
        load(tmp_path, labels=True)


def test_images_beside_class_folders_are_refused(tmp_path):
    class_folders(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "stray.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"stray\.png"):
        load(tmp_path)


def test_too_few_images_for_a_test_split_are_refused(tmp_path):
    with pytest.raises(DataError, match="test_share"):
        load(class_folders(tmp_path, {"a": 2, "b": 2}), "test")


def test_hidden_files_are_not_images(tmp_path):
    class_folders(tmp_path, {"a": 10, "b": 10})
    (tmp_path / "a" / "._000.png").write_bytes(b"resource fork")
    assert len(load(tmp_path, test_share=0.1)) == 18


def test_names_with_foreign_letters_survive(tmp_path):
    class_folders(tmp_path, {"größe": 4, "猫": 4})
    dataset = load(tmp_path, test_share=0.25)
    assert dataset.class_names == ["größe", "猫"]
    assert dataset[0].image.shape == (3, 16, 16)
