import logging

import pytest
import torch

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.digits import Digits
from simflow_plugin.data.image_folder import ImageFolder
from simflow_plugin.data.loader import evaluation_batches, make_loader
from simflow_plugin.data.order import GlobalBatches
from simflow_plugin.errors import DataError
from tests.data.makers import CORRUPT, class_folders


@pytest.fixture(scope="module")
def digits():
    return Digits(Digits.Options(), DataContext(8, "train"))


def folder(root, counts, **options) -> ImageFolder:
    class_folders(root, counts)
    return ImageFolder(
        ImageFolder.Options(root=str(root), labels=False, test_share=0.01, **options), DataContext(8, "train")
    )


def corrupt(dataset: ImageFolder, *indices: int) -> None:
    for index in indices:
        (dataset.root / dataset.names[index]).write_bytes(CORRUPT)


def same(first, second) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(first, second, strict=True)
    )


def test_images_are_floats_in_minus_one_to_one(digits):
    batch = next(iter(make_loader(digits, GlobalBatches(32), 0, range(1))))
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (32, 3, 8, 8)
    assert batch.images.min() == -1
    assert batch.images.max() == 1


def test_rows_are_the_images_that_indices_name(digits):
    batch = next(iter(make_loader(digits, GlobalBatches(16), 0, range(3, 4))))
    expected = torch.stack([digits[i].image for i in batch.indices.tolist()])
    assert torch.equal(((batch.images + 1) * 127.5).round().to(torch.uint8), expected)
    assert torch.equal(batch.labels, digits.labels[batch.indices])


def test_resumed_batches_are_bitwise_equal(digits):
    batches = GlobalBatches(64, accumulation=2)
    whole, resumed = (
        list(make_loader(digits, batches, 1, steps, horizontal_flip=True))
        for steps in (range(30), range(21, 30))
    )
    assert len(resumed) == 18
    assert all(same(a, b) for a, b in zip(whole[42:], resumed, strict=True))


def test_workers_change_nothing(digits):
    alone, helped = (
        make_loader(digits, GlobalBatches(32), 1, range(5, 11), horizontal_flip=True, num_workers=count)
        for count in (0, 2)
    )
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 2), (2, 2)])
def test_processes_and_accumulation_see_the_same_global_batch(digits, world_size, accumulation):
    whole = next(iter(make_loader(digits, GlobalBatches(32), 1, range(7, 8), horizontal_flip=True)))
    parts = [
        batch
        for rank in range(world_size)
        for batch in make_loader(
            digits, GlobalBatches(32, world_size, accumulation), 1, range(7, 8), rank, horizontal_flip=True
        )
    ]
    parts.sort(key=lambda batch: batch.offset)
    assert torch.equal(torch.cat([batch.images for batch in parts]), whole.images)


def test_flips_mirror_about_half_of_the_images(digits):
    plain = next(iter(make_loader(digits, GlobalBatches(256), 0, range(1))))
    mixed = next(iter(make_loader(digits, GlobalBatches(256), 0, range(1), horizontal_flip=True)))
    assert 0.4 < mixed.flipped.double().mean() < 0.6
    assert torch.equal(mixed.images[mixed.flipped], plain.images[mixed.flipped].flip(-1))
    assert torch.equal(mixed.images[~mixed.flipped], plain.images[~mixed.flipped])


def test_iterating_leaves_the_global_generator_alone(digits):
    before = torch.random.get_rng_state()
    list(make_loader(digits, GlobalBatches(32), 0, range(2), num_workers=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_corrupt_image_is_replaced_counted_and_named_once(tmp_path, caplog):
    dataset = folder(tmp_path, {"a": 30}, max_corrupt_share=0.1)
    corrupt(dataset, 4)
    loader = make_loader(dataset, GlobalBatches(len(dataset)), 0, range(2))
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert loader.corrupt == {4}
    assert all(4 not in batch.indices and (batch.indices == 5).sum() == 2 for batch in batches)
    assert [dataset.names[4] in record.message for record in caplog.records] == [True]


def test_corrupt_images_are_replaced_alike_by_workers(tmp_path):
    dataset = folder(tmp_path, {"a": 20}, max_corrupt_share=0.5)
    corrupt(dataset, 0, 1, 7)
    alone, helped = (make_loader(dataset, GlobalBatches(8), 0, range(6), num_workers=n) for n in (0, 2))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert helped.corrupt == alone.corrupt == {0, 1, 7}


@pytest.mark.parametrize(
    ("num_images", "num_corrupt", "share", "allowed"),
    [
        (20, 1, 0.01, 1),
        (20, 20, 0.01, 1),
        (20, 1, 0, 0),
        (220, 2, 0.01, 2),
        (220, 3, 0.01, 2),
        (2, 2, 1, 1),
    ],
    ids=[
        "one in a small run",
        "all",
        "one where none is allowed",
        "as many as the share",
        "more than the share",
        "all, whatever the share",
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_corrupt_images_stop_the_run(tmp_path, num_images, num_corrupt, share, allowed, num_workers):
    dataset = folder(tmp_path, {"a": num_images}, max_corrupt_share=share)
    corrupt(dataset, *range(num_corrupt))
    loader = make_loader(dataset, GlobalBatches(len(dataset)), 0, range(2), num_workers=num_workers)
    if num_corrupt <= allowed:
        assert len(list(loader)) == 2
        assert loader.corrupt == {*range(num_corrupt)}
        return
    with pytest.raises(DataError, match=f"corrupt, more than the {allowed} that data") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


def test_evaluation_is_in_order_and_complete(digits):
    batches = list(evaluation_batches(digits, 100))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(len(digits)))


def test_evaluation_of_chosen_images(digits):
    batches = list(evaluation_batches(digits, 2, [7, 3, 5]))
    assert [batch.indices.tolist() for batch in batches] == [[7, 3], [5]]


def test_evaluation_leaves_corrupt_images_out(tmp_path):
    dataset = folder(tmp_path, {"a": 20}, max_corrupt_share=0.2)
    corrupt(dataset, 3)
    indices = torch.cat([batch.indices for batch in evaluation_batches(dataset, 6)]).tolist()
    assert indices == [i for i in range(len(dataset)) if i != 3]
