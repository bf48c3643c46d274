"""Real images of a report: every class, only what can be read, and the nearest training image."""

import numpy as np
import torch

from simflow_plugin.contracts import Example
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.evaluation.report.grids import GAP, GROUP_GAP, MIN_TILE, image_grid
from simflow_plugin.evaluation.report.real_images import (
    nearest_training_images,
    pixels_of,
    readable_rows,
    rows_by_class,
    rows_in_turn,
)


class Images:
    """Grey images of level 8 i, sorted by class, some of them corrupt."""

    num_classes, class_names = 3, None

    def __init__(self, count=30, corrupt=()):
        self.labels = torch.arange(count) * 3 // count
        self.corrupt = set(corrupt)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        if row in self.corrupt:
            raise CorruptImage(f"{row}: corrupt")
        return Example(torch.full((3, 4, 4), 8 * row, dtype=torch.uint8), int(self.labels[row]))


def test_every_class_has_its_row_of_readable_images():
    rows = rows_by_class(Images(corrupt=[0, 11]), range(3), 2)
    assert rows == [[1, 2], [10, 12], [20, 21]]
    assert pixels_of(Images(), rows[0])[1, 0, 0, 0] == 16


def test_classes_take_turns_and_all_of_many_are_passed():
    assert rows_in_turn(Images(corrupt=[0]), 3, 5) == [1, 10, 20, 2, 11]
    many = Images(count=40)
    many.labels = torch.arange(40)
    assert [int(many.labels[row]) for row in rows_in_turn(many, 40, 4)] == [0, 10, 20, 30]


def test_unlabelled_images_are_drawn_once():
    dataset = Images()
    assert rows_in_turn(dataset, None, 4) == readable_rows(dataset, 4)


def test_labels_grow_with_the_grid():
    """A wide grid is shown at the width of the page: labels of a fixed size would not be legible there."""
    narrow, wide = (
        image_grid(np.zeros((count, 128, 128, 3), np.uint8), count, column_labels=["a"] * count)
        for count in (2, 16)
    )
    assert wide.height - 128 >= 16 * 128 // 44 > narrow.height - 128


def test_readable_rows_leave_corrupt_images_out():
    dataset = Images(count=6, corrupt=[2, 4])
    assert readable_rows(dataset, 6) == [0, 1, 3, 5]


def test_nearest_training_image_of_a_copy_is_itself_at_distance_zero():
    dataset = Images(corrupt=[5])
    queries = pixels_of(dataset, [3, 7])
    queries[1] += 2
    found = nearest_training_images(queries, dataset)
    np.testing.assert_allclose(found.distances, [0, 2])
    assert found.images[:, 0, 0, 0].tolist() == [24, 56]
    assert found.num_compared == 29


def test_groups_of_columns_have_a_title_and_a_gap():
    images = np.zeros((6, MIN_TILE, MIN_TILE, 3), np.uint8)
    plain = image_grid(images, 3)
    grouped = image_grid(images, 3, groups={"samples": 2, "real": 1})
    assert grouped.width == plain.width + GROUP_GAP
    assert grouped.height > plain.height
    edge = 2 * (MIN_TILE + GAP)
    assert np.asarray(grouped)[-1, edge : edge + GROUP_GAP, 3].max() == 0
    assert np.asarray(grouped)[-1, -1, 3] == 255
