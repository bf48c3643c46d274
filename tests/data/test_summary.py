"""The start-up summary, and the refusals and notes when the data is not what it was."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.changes import data_changes
from simflow_plugin.data.digits import Digits
from simflow_plugin.data.image_folder import ImageFolder
from simflow_plugin.data.in_memory import InMemoryDataset
from simflow_plugin.data.summary import content_digests, split_notes, summarize
from simflow_plugin.errors import DataError, ShapeError
from tests.data.makers import CORRUPT, class_folders, png
from tests.data.test_content_facts import SOURCES, ThirdParty, every_source


def load(root, split="train", **options) -> ImageFolder:
    return ImageFolder(ImageFolder.Options(root=str(root), **options), DataContext(8, split))


def state_of(dataset) -> dict:
    """What a checkpoint keeps of the data."""
    return {
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
        "num_images": len(dataset),
        "content_digests": content_digests(dataset),
    }


def summary_lines(root, batch_size=1, **options) -> list[str]:
    train, test = (load(root, split, **options) for split in ("train", "test"))
    return summarize("image_folder", train, test, batch_size).lines()


@pytest.fixture
def splits(tmp_path):
    class_folders(tmp_path / "train", {"cat": 4, "dog": 4})
    class_folders(tmp_path / "test", {"cat": 2, "dog": 2})
    return tmp_path


def test_lines_name_images_classes_splits_and_what_is_ignored(splits):
    (splits / "train" / "cat" / "notes.txt").write_text("")
    (splits / "test" / ".DS_Store").write_text("")
    assert summary_lines(splits) == [
        "data: image_folder, 2 classes: cat, dog",
        "  train: 8 images, 4 of each class",
        "  train: ignored 1 .txt",
        "  test: 4 images, 2 of each class",
        "  test: ignored 1 hidden or system files",
    ]


def test_uneven_classes_are_counted_by_name_and_noted(tmp_path):
    class_folders(tmp_path / "train", {"cat": 4, "dog": 1})
    class_folders(tmp_path / "test", {"cat": 6, "dog": 2})
    text = "\n".join(summary_lines(tmp_path))
    assert "  train: 5 images, cat 4, dog 1\n" in text
    assert "the test split holds 2 to 6: distances such as FID" in text


def test_unlabelled_test_folder_is_noted(splits):
    for name in ("cat", "dog"):
        (splits / "test" / name / "000.png").rename(splits / "test" / f"{name}.png")
        shutil.rmtree(splits / "test" / name)
    text = "\n".join(summary_lines(splits))
    assert "  test: 2 images, unlabelled\n" in text
    assert "the test split is unlabelled" in text


def test_corrupt_images_and_too_large_batches_are_noted(splits):
    (splits / "train" / "cat" / "000.png").write_bytes(CORRUPT)
    text = "\n".join(summary_lines(splits, 100))
    assert "  train: 1 of 8 images tried cannot be read, such as" in text
    assert "batch_size 100 is more than the 8 training images" in text


def test_nothing_but_corrupt_images_is_refused(splits):
    for path in (splits / "train").rglob("*.png"):
        path.write_bytes(CORRUPT)
    with pytest.raises(DataError, match="train: all 8 images tried are corrupt"):
        summary_lines(splits)


def test_twelve_bits_in_sixteen_are_noted(tmp_path):
    for number in range(10):
        pixels = np.full((8, 8), 4095 - number, dtype=np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    lines = summary_lines(tmp_path, test_share=0.3)
    assert (
        "  train: 7 of 7 images tried have 16 bits and use 12: they come out 16 times too dark." in lines[2]
    )


def test_split_without_an_image_is_noted():
    train = Digits(Digits.Options(), DataContext(8, "train"))
    assert any("no test image" in line for line in summarize("digits", train, None).lines())


@every_source
def test_every_kind_of_data_set_is_summarized(name, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    SOURCES[name][0](tmp_path / "images", 50)
    dataset = SOURCES[name][1](tmp_path / "images")
    summary = summarize(name, dataset, None)
    assert summary.splits["train"].num_images == len(dataset)
    assert "unreadable" not in summary.splits["train"].digests
    assert summary.to_json()["name"] == name


@every_source
def test_changed_pixels_are_noticed(name, tmp_path):
    digests = []
    for first in (50, 51):
        (tmp_path / f"{first}" / "images").mkdir(parents=True)
        SOURCES[name][0](tmp_path / f"{first}" / "images", first)
        digests.append(content_digests(SOURCES[name][1](tmp_path / f"{first}" / "images")))
    assert digests[0] != digests[1]


def test_unchanged_data_is_unchanged(splits):
    assert data_changes(state_of(load(splits)), load(splits)) == []


def test_changed_image_is_named(splits):
    state = state_of(load(splits))
    (splits / "train" / "dog" / "002.png").write_bytes(png(200))
    (note,) = data_changes(state, load(splits))
    assert "1 of 8 training images looked at have another content" in note
    assert "dog/002.png" in note


def test_added_image_is_noted(splits):
    state = state_of(load(splits))
    (splits / "train" / "dog" / "new.png").write_bytes(png(200))
    assert "9 images now and had 8" in data_changes(state, load(splits))[0]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (["cat", "dogs"], "classes of other names now.*Then: 2 classes: cat, dog. Now: 2 classes: cat, dogs"),
        (["ant", "cat", "dog"], "another number of classes.*Now: 3 classes: ant, cat, dog.*new: ant"),
        (["cat", "emu"], "Gone: dog; new: emu"),
    ],
)
def test_other_classes_are_refused_with_both_lists(splits, tmp_path, new, message):
    state = state_of(load(splits))
    class_folders(tmp_path / "now" / "train", dict.fromkeys(new, 4))
    with pytest.raises(DataError, match=message):
        data_changes(state, load(tmp_path / "now"))


def test_reordered_classes_are_refused(splits):
    state = state_of(load(splits))
    dataset = load(splits)
    dataset.class_names = ["dog", "cat"]
    with pytest.raises(
        DataError, match="the same classes in another order.*cat, dog. Now: 2 classes: dog, cat"
    ):
        data_changes(state, dataset)


def test_data_that_lost_its_labels_is_refused(splits):
    with pytest.raises(DataError, match="another number of classes.*Now: unlabelled"):
        data_changes(state_of(load(splits)), load(splits, labels=False))


def test_run_of_an_earlier_version_is_compared_as_far_as_it_says(splits):
    assert data_changes({"num_classes": 2}, load(splits)) == []
    with pytest.raises(DataError, match="Then: 3 classes"):
        data_changes({"num_classes": 3}, load(splits))


def test_test_split_of_more_classes_is_refused_for_any_data_set():
    with pytest.raises(DataError, match="3 classes: a, b, c there, 2 classes: a, b in training"):
        split_notes(ThirdParty(class_names=["a", "b"]), ThirdParty(class_names=["a", "b", "c"]))


def test_label_that_is_no_class_is_refused_for_any_data_set():
    dataset = ThirdParty(class_names=["a", "b"])
    dataset.labels = torch.tensor([0, 1, 2, 0, 0])
    with pytest.raises(DataError, match="train: a label is 2, but there are 2 classes"):
        summarize("own", dataset, None)


@pytest.mark.parametrize(
    ("images", "num_labels", "said"),
    [
        (torch.zeros(2, 3, 4, 4), 2, r"images are torch\.float32 .* expected uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), 2, r"\(2, 4, 4\), expected uint8 \(N, 1 or 3, H, W\)"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), 2, r"\(2, 4, 4, 3\), expected"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            3,
            r"labels are \(3,\), expected one for each of 2 images",
        ),
    ],
)
def test_images_in_memory_of_another_shape_or_type_are_refused(images, num_labels, said):
    with pytest.raises(ShapeError, match=f"own: .*{said}"):
        InMemoryDataset(images, torch.zeros(num_labels, dtype=torch.int64), ["a"], "own")


def test_label_in_memory_that_is_no_class_is_refused():
    with pytest.raises(DataError, match="labels from 0 to 200, but there are 2 classes"):
        InMemoryDataset(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 200]), ["a", "b"], "own")
