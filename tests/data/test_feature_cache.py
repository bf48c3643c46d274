import numpy as np
import pytest
import torch

from simflow_plugin.contracts import DataContext, Example
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.digits import Digits
from simflow_plugin.data.feature_cache import CacheJob, dataset_facts
from simflow_plugin.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return Digits(Digits.Options(), DataContext(8, "test"))


@pytest.fixture
def facts(digits):
    return {**dataset_facts("digits", {}, digits, "test", 8), "encoder": "columns"}


def counting(seen: list[int]):
    """Columns that note how many images each call is given."""

    def compute(images):
        seen.append(len(images))
        return columns(images)

    return compute


class Pictures:
    """Grey pictures whose value is their number; some cannot be read."""

    def __init__(self, num: int, unreadable: tuple[int, ...] = (), share: float = 0.5):
        self.num, self.unreadable, self.max_corrupt_share = num, unreadable, share

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        if index in self.unreadable:
            raise CorruptImage(f"image {index}: cut short")
        return Example(torch.full((3, 2, 2), index % 256, dtype=torch.uint8), 0)


def build_cache(folder, facts, dataset, compute, **options):
    return CacheJob(folder, facts, dataset, compute, **options).finish()


def columns(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=(1, 2))


def read_all(dataset) -> torch.Tensor:
    return dataset.read_batch(range(len(dataset)))[0].float() / 127.5 - 1


def test_cached_values_are_the_computed_ones(tmp_path, digits, facts):
    cache = build_cache(tmp_path, facts, digits, columns, dtype="float32")
    rows = torch.tensor([5, 0, 300])
    assert torch.allclose(cache.read(rows), columns(read_all(digits))[rows], atol=1e-6)


def test_mirrored_values_are_those_of_mirrored_images(tmp_path, digits, facts):
    cache = build_cache(tmp_path, facts, digits, columns, with_flips=True, dtype="float32")
    rows, flipped = torch.tensor([3, 4]), torch.tensor([True, False])
    expected = torch.stack([columns(read_all(digits).flip(-1))[3], columns(read_all(digits))[4]])
    assert torch.allclose(cache.read(rows, flipped), expected, atol=1e-6)


def test_mirrored_values_that_were_not_cached_are_refused(tmp_path, digits, facts):
    cache = build_cache(tmp_path, facts, digits, columns)
    assert cache.values.dtype == np.float16
    with pytest.raises(DataError, match="mirrored"):
        cache.read(torch.tensor([0]), torch.tensor([True]))


def test_second_build_computes_nothing(tmp_path, digits, facts):
    seen = []
    for _ in range(2):
        build_cache(tmp_path, facts, digits, counting(seen))
    assert sum(seen) == len(digits)


def test_other_facts_are_another_cache(tmp_path, digits, facts):
    build_cache(tmp_path, facts, digits, columns)
    build_cache(tmp_path, {**facts, "encoder": "other"}, digits, lambda images: -columns(images))
    assert len(list(tmp_path.iterdir())) == 2


def test_interrupted_build_goes_on(tmp_path, digits, facts):
    """Parts are of 16 batches; the one that was begun is computed again, the ones before it are not."""
    seen = []

    def fails_late(images):
        seen.append(len(images))
        if sum(seen) > 200:
            raise KeyboardInterrupt
        return columns(images)

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path, facts, digits, fails_late, batch_size=5)
    assert CacheJob(tmp_path, facts, digits, columns).open() is None

    seen.clear()
    cache = build_cache(tmp_path, facts, digits, counting(seen), batch_size=5)
    assert sum(seen) == len(digits) - 160
    assert torch.allclose(cache.read(torch.tensor([0, 170])), columns(read_all(digits))[[0, 170]], atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [cache.place.name]


def test_processes_compute_a_share_each(tmp_path, digits, facts):
    """In any order, and each image once; the values are those of one process."""
    seen = []
    job = CacheJob(tmp_path / "two", facts, digits, counting(seen), batch_size=5)
    for rank in (1, 0):
        job.compute_share(rank, 2)
    assert sum(seen) == len(digits)
    shared = job.finish()
    assert sum(seen) == len(digits)
    alone = build_cache(tmp_path / "one", facts, digits, columns, batch_size=5)
    assert np.array_equal(shared.values, alone.values)


def test_torn_part_is_computed_again(tmp_path, digits, facts):
    job = CacheJob(tmp_path, facts, digits, columns, batch_size=5)
    job.compute_share(0, 1)
    part = sorted(job.parts.folder.iterdir())[1]
    part.write_bytes(part.read_bytes()[:-7])
    assert np.isfinite(job.finish().values).all()


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("cache.json", lambda content: content.replace(b"columns", b"swapped"), "made for other encoder"),
        ("values.npy", lambda content: content[:-100], "damaged cache"),
        ("checksums.npy", lambda content: b"", "damaged cache"),
    ],
)
def test_damaged_cache_is_refused(tmp_path, digits, facts, file, spoil, message):
    path = build_cache(tmp_path, facts, digits, columns).place / file
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=f"{message}.*Delete the folder"):
        build_cache(tmp_path, facts, digits, columns)


@pytest.mark.parametrize("row", [0, 30, 99])
def test_flipped_bit_is_noticed_when_its_row_is_read(tmp_path, row):
    place = build_cache(tmp_path, {}, Pictures(100), columns).place
    content = bytearray((place / "values.npy").read_bytes())
    content[len(content) - (100 - row) * 4 + 1] ^= 4  # two values of two bytes a row
    (place / "values.npy").write_bytes(content)
    cache = build_cache(tmp_path, {}, Pictures(100), columns)
    assert cache.read(torch.tensor([i for i in range(100) if i != row])).shape == (99, 2)
    with pytest.raises(DataError, match=f"image {row} are not what was written.*Delete the folder"):
        cache.read(torch.tensor([row]))


def test_image_that_could_not_be_read_then_has_no_values_now(tmp_path):
    cache = build_cache(tmp_path, {"encoder": "columns"}, Pictures(3, (1,)), columns)
    assert cache.read(torch.tensor([0, 2])).isfinite().all()
    with pytest.raises(DataError, match=r"no values of image 1, .*Delete the folder"):
        cache.read(torch.tensor([0, 1, 2]))


def test_the_limit_of_corrupt_images_is_that_of_all_processes_together(tmp_path):
    jobs = [CacheJob(tmp_path, {}, Pictures(6, (1, 4), 0.2), columns) for _ in range(3)]
    for rank, job in enumerate(jobs[:2]):
        object.__setattr__(job.parts, "part_size", 3)
        job.compute_share(rank, 2)
    object.__setattr__(jobs[2].parts, "part_size", 3)
    with pytest.raises(DataError, match="2 of 6 images are corrupt, more than the 1"):
        jobs[2].finish()


def test_a_cache_that_another_process_finishes_meanwhile_is_opened(tmp_path, digits, facts):
    calls = []

    def overtaken(images):
        if not calls:
            build_cache(tmp_path, facts, digits, columns, batch_size=4)
        calls.append(len(images))
        return columns(images)

    cache = build_cache(tmp_path, facts, digits, overtaken, batch_size=4)
    assert len(cache) == len(digits)
    assert sum(calls) == 16 * 4  # one part: the one that was begun
    build_cache(tmp_path, facts, digits, columns)
    assert [path.name for path in tmp_path.iterdir()] == [cache.place.name]  # no parts are left
