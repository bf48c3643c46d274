import os

import pytest
from PIL import Image

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


def test_labels_can_be_left_unused(tmp_path):
    dataset = load(class_folders(tmp_path, {"only": 30}), labels=False)
    assert dataset.num_classes is None


def two_classes(root):
    """Classes `a` and `b` of three images each."""
    return class_folders(root, {"a": 3, "b": 3})


def write(path, content: bytes = b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


REFUSED = {
    "missing folder": (lambda root: root.rmdir(), r"root: does not exist.*data\.root"),
    "file as root": (lambda root: (root.rmdir(), write(root)), "is a file"),
    "no image": (lambda root: write(root / "notes.txt"), "no images below it"),
    "images that are not read": (
        lambda root: write(root / "1.dng"),
        r"1 \.dng \(images of a kind that is not read\) left out",
    ),
    "one class": (lambda root: class_folders(root, {"only": 30}), r"one class.*data\.labels: false"),
    "images beside classes": (
        lambda root: write(two_classes(root) / "stray.png", png(1)),
        r"stray\.png",
    ),
    "splits inside classes": (
        lambda root: [class_folders(root / name, {"train": 2, "test": 2}) for name in "ab"],
        "class folders hold splits",
    ),
    "link to a folder above": (
        lambda root: (two_classes(root) / "a" / "again").symlink_to(root),
        "a/again: a link to a folder that it lies in",
    ),
    "one file in two classes": (
        lambda root: (two_classes(root) / "b" / "same.png").symlink_to(root / "a" / "000.png"),
        r"a/000\.png and b/same\.png are one file",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_folder_that_cannot_be_understood_is_refused_with_the_reason(tmp_path, kind):
    make, message = REFUSED[kind]
    (tmp_path / "root").mkdir()
    make(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "root")


@pytest.mark.parametrize(
    ("train", "test", "split", "options", "message"),
    [
        ({"a": 2, "b": 2}, {"z": 2}, "test", {}, "`z`"),
        ({"a": 2, "b": 2}, None, "test", {}, "test_share"),
        ({".": 1}, None, "train", {"labels": True}, "no labels"),
        (
            {"a": 3, "b": 3},
            None,
            "train",
            {"test_folder": "Tset"},
            r"Tset: does not exist. Set data\.test_folder",
        ),
    ],
    ids=["class without training images", "too few images", "no labels", "missing split"],
)
def test_split_that_cannot_be_had_is_refused_with_the_reason(tmp_path, train, test, split, options, message):
    for name, counts in (("train", train), ("val", test)):
        for folder, count in (counts or {}).items():
            for number in range(count):
                write(tmp_path / name / folder / f"{number}.png", png(number))
    with pytest.raises(DataError, match=message):
        load(tmp_path, split, **options)


def test_names_with_foreign_letters_survive(tmp_path):
    class_folders(tmp_path, {"größe": 4, "猫": 4})
    dataset = load(tmp_path, test_share=0.25)
    assert dataset.class_names == ["größe", "猫"]
    assert dataset[0].image.shape == (3, 16, 16)


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", ".git", ".thumbnails", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found"]
)
def test_hidden_and_system_folders_are_no_classes(tmp_path, name):
    class_folders(tmp_path, {"a": 3, "b": 3, name: 3})
    class_folders(tmp_path / "a", {name: 2})
    dataset = load(tmp_path, test_share=0.1)
    assert dataset.class_names == ["a", "b"]
    assert len(dataset) == 6
    assert dataset.ignored == {"hidden or system folders": 2}


@pytest.mark.parametrize(
    "folders",
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("val", "test"),
        ("train", "Test"),
        ("TRAIN", "val"),
        ("train_images", "val_images"),
        ("train2017", "val2017"),
        ("train", "cat", "dog"),
        ("cat", "dog", "test"),
        ("train", "val", "extra"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path, folders):
    for folder in folders:
        class_folders(tmp_path / folder, {"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"splits or classes\?.*data\.train_folder: \.$"):
        load(tmp_path)


def test_option_decides_that_folders_are_splits(tmp_path):
    class_folders(tmp_path / "Train", {"a": 3, "b": 3})
    class_folders(tmp_path / "Test", {"b": 2, "a": 1})
    options = {"train_folder": "Train", "test_folder": "Test"}
    assert len(load(tmp_path, **options)) == 6
    assert load(tmp_path, "test", **options).labels.tolist() == [0, 1, 1]


def test_option_decides_that_folders_are_classes(tmp_path):
    class_folders(tmp_path, {"train": 4, "cat": 4})
    assert load(tmp_path, train_folder=".", test_share=0.1).class_names == ["cat", "train"]


@pytest.mark.parametrize("name", ["training day", "steam train", "test tube", "trainer", "valley"])
def test_class_whose_name_holds_a_split_word_is_a_class(tmp_path, name):
    class_folders(tmp_path, {name: 4, "cat": 4})
    assert load(tmp_path, test_share=0.1).class_names == sorted(["cat", name])


def test_second_test_folder_is_named(tmp_path):
    for folder in ("train", "val", "test"):
        class_folders(tmp_path / folder, {"a": 2, "b": 2})
    assert load(tmp_path).ignored == {"folders beside the splits (val)": 1}


def test_flat_test_folder_is_unlabelled_and_keeps_the_classes(tmp_path):
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "1.png").write_bytes(png(1))
    test = load(tmp_path, "test")
    assert test.labels.tolist() == [NO_LABEL]
    assert test.class_names == ["a", "b"]


def test_labelled_test_folder_of_unlabelled_training_is_unlabelled(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(png(1))
    class_folders(tmp_path / "val", {"a": 3, "b": 3})
    assert load(tmp_path, "test").num_classes is None


def test_links_that_lead_to_each_other_are_ignored(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "a" / "x.png").symlink_to(tmp_path / "a" / "y.png")
    (tmp_path / "a" / "y.png").symlink_to(tmp_path / "a" / "x.png")
    dataset = load(tmp_path, test_share=0.1)
    assert len(dataset) == 6
    assert dataset.ignored == {"links to nothing, FIFOs or devices": 2}


def test_file_reached_twice_is_counted_once(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "000.png")  # no image by its name
    (tmp_path / "a" / "000-link.png").symlink_to(tmp_path / "a" / "000.png")
    (tmp_path / "more").mkdir()
    (tmp_path / "a" / "more").symlink_to(tmp_path / "more")
    os.link(tmp_path / "a" / "001.png", tmp_path / "a" / "hard.png")
    dataset = load(tmp_path, test_share=0.1)
    assert list(dataset.names) == [f"{name}/00{number}.png" for name in "ab" for number in range(3)]
    assert dataset.ignored["reached twice (links)"] == 2


def test_folder_of_links_to_images_elsewhere_is_read(tmp_path):
    class_folders(tmp_path / "store", {"a": 3, "b": 3})
    (tmp_path / "chosen").mkdir()
    for name in ("a", "b"):
        (tmp_path / "chosen" / name).symlink_to(tmp_path / "store" / name)
    assert len(load(tmp_path / "chosen", test_share=0.1)) == 6


def test_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    two_classes(tmp_path)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"/b: cannot be listed: Permission denied"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("1.pgm", "PPM"), ("1.JFIF", "JPEG"), ("1.avif", "AVIF"), ("1.jp2", "JPEG2000"), ("1.qoi", "QOI")],
)
def test_every_ending_of_a_format_that_is_read_counts(tmp_path, name, kind):
    image = Image.new("RGB", (20, 20), (9, 9, 9))
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    image.save(tmp_path / name, format=kind)
    (tmp_path / "2.png").write_bytes(png(9))
    assert len(load(tmp_path, test_share=0.1)) == 2


def test_files_that_are_no_images_are_counted_by_kind(tmp_path):
    two_classes(tmp_path)
    for name in ("labels.csv", "a/1.txt", "a/2.txt", "b/clip.mp4", "b/README", "b/._0.png", "b/Thumbs.db"):
        (tmp_path / name).write_text("no image")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert load(tmp_path, test_share=0.1).ignored == {
        ".csv": 1,
        ".txt": 2,
        ".mp4 (images of a kind that is not read)": 1,
        "no ending": 1,
        "hidden or system files": 2,
        "links to nothing, FIFOs or devices": 1,
    }


def test_transparency_is_laid_over_the_background_that_is_asked_for(tmp_path):
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "1.png")
    assert load(tmp_path, test_share=0.1)[0].image.unique().tolist() == [255]
    assert load(tmp_path, test_share=0.1, background="#070707")[0].image.unique().tolist() == [7]
