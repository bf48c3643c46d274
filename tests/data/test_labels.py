import numpy as np
import pytest

from simflow_plugin.data.labels import find_classes, number_labels, parse_label
from simflow_plugin.errors import DataError


@pytest.mark.parametrize(
    ("value", "key"),
    [(7, 7), (np.int64(7), 7), ("7", 7), (" 7\n", 7), ("+7", 7), (-1, -1), ("猫", "猫"), (10**9, 10**9)],
)
def test_numbers_and_words_are_labels(value, key):
    assert parse_label(value, "img.png") == key


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, np.bool_(False), 0.5, 3.0, float("nan"), -2, 1 << 70),
        *("", "a\x00b", "x" * 300, [0, 1], {"id": 3}, b"3"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_label_is_refused_by_the_name_of_its_record(value):
    with pytest.raises(
        DataError, match=r"img\.png: its label is .*expected a whole number.*data\.labels: false"
    ):
        parse_label(value, "img.png")


def test_ids_with_gaps_size_no_table():
    labels, classes = number_labels("here", [701, 10**9, 3, 701], [701, 10**9, 3, 701], "auto")
    assert labels.tolist() == [1, 2, 0, 1]
    assert classes == ["3", "701", "1000000000"]


def test_declared_order_is_kept_without_the_classes_never_seen():
    assert find_classes("here", ["dog", "cat"], ["dog", "emu", "cat"]) == ["dog", "cat"]


def test_test_split_is_numbered_by_the_classes_of_training():
    labels, _ = number_labels("here", [9, 9], [3, 9, 5], "auto")
    assert labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("own", "training", "wanted", "message"),
    [
        ([0, 4], [0, 1], "auto", "1 classes that no training image has: `4`. Training has 2: 0, 1"),
        ([1, "cat"], [1, "cat"], "auto", "some labels are numbers .*others words"),
        ([0, -1, 1], [0, -1, 1], "auto", "1 of 3 images have no label, such as b"),
        (None, None, True, "data.labels is true"),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(own, training, wanted, message):
    with pytest.raises(DataError, match=message):
        number_labels("here", own, training, wanted, ["a", "b", "c"])


def test_nothing_but_unknown_labels_is_no_label():
    assert number_labels("here", [-1, -1], [-1, -1], "auto") == (None, None)
