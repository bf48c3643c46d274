"""Features of many images: shared by processes, resumed, and cached by what they depend on."""

import pytest
import torch

from simflow_plugin.data.shared_parts import SharedParts
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.fidelity import extract
from simflow_plugin.evaluation.shared_features import SharedFeatures
from tests.evaluation.test_fidelity import toy

PIXELS = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Reader:
    """Reads `PIXELS` two at a time, and remembers which were asked for; those of `broken` cannot be read."""

    def __init__(self, broken=()):
        self.asked = []
        self.broken = broken

    def __call__(self, numbers):
        self.asked += numbers
        readable = [number for number in numbers if number not in self.broken]
        yield from PIXELS[readable].split(2) if readable else ()


def shared(folder, reader, facts=None, digest="0", **options):
    facts = {} if facts is None else facts
    return SharedFeatures("images", facts, toy(digest=digest), reader, 9, folder, part_size=2, **options)


def expected():
    return extract(toy(), [PIXELS]).pooled


def test_processes_extract_a_share_each_and_all_of_it_is_read_in_order(tmp_path):
    readers = [Reader(), Reader()]
    for rank in (1, 0):
        shared(tmp_path, readers[rank]).make_missing(rank, 2)
    assert readers[0].asked == [0, 1, 4, 5, 8]
    assert readers[1].asked == [2, 3, 6, 7]
    last = Reader()
    assert torch.allclose(shared(tmp_path, last).read().pooled, expected(), rtol=1e-5)
    assert last.asked == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]  # no parts are left


def test_what_a_process_did_not_come_to_is_extracted_by_the_reader(tmp_path):
    shared(tmp_path, Reader()).make_missing(0, 2)
    reader = Reader()
    assert torch.allclose(shared(tmp_path, reader).read().pooled, expected(), rtol=1e-5)
    assert reader.asked == [2, 3, 6, 7]


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    found = shared(tmp_path, Reader(broken={0, 1, 4})).read().pooled
    assert torch.allclose(found, expected()[[2, 3, 5, 6, 7, 8]], rtol=1e-5)
    with pytest.raises(EvaluationError, match="there are no images"):
        shared(tmp_path, Reader(broken=range(9)), {"other": 1}).read()


def test_cache_is_keyed_by_data_and_weights(tmp_path):
    reader = Reader()
    for split, digest in (("test", "a"), ("test", "a"), ("train", "a"), ("test", "b")):
        shared(tmp_path, reader, {"split": split}, digest).read()
    assert len(reader.asked) == 3 * 9


def test_features_of_samples_are_not_kept(tmp_path):
    shared(tmp_path, Reader(), keeps=False).read()
    assert list(tmp_path.iterdir()) == []


def test_of_two_evaluations_at_once_the_later_makes_nothing_that_the_other_has_finished(tmp_path):
    class Overtaken(Reader):
        """Another evaluation finishes, and removes the parts, while the first part is extracted."""

        def __call__(self, numbers):
            if not self.asked:
                shared(tmp_path, Reader()).read()
            yield from super().__call__(numbers)

    for make in (SharedFeatures.read, lambda features: features.make_missing(0, 1)):
        reader = Overtaken()
        make(shared(tmp_path, reader))
        assert reader.asked == [0, 1]
        assert torch.allclose(shared(tmp_path, reader).read().pooled, expected(), rtol=1e-5)
        assert reader.asked == [0, 1]
        assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]  # no parts are left
        next(tmp_path.iterdir()).unlink()


def test_parts_of_another_size_are_not_read(tmp_path):
    large = SharedParts(tmp_path, 9, lambda items: {"rows": torch.tensor(items)}, 4)
    large.make_missing()
    ours = SharedParts(tmp_path, 9, large.compute, 2)
    assert torch.cat([part["rows"] for part in ours.read()]).tolist() == list(range(9))


def test_torn_cache_is_made_again(tmp_path):
    for _ in range(2):
        assert torch.allclose(shared(tmp_path, Reader()).read().pooled, expected(), rtol=1e-5)
        next(tmp_path.iterdir()).write_bytes(b"torn")


def test_flipped_bit_in_cached_features_is_noticed(tmp_path, caplog):
    shared(tmp_path, Reader()).read()
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert torch.allclose(shared(tmp_path, Reader()).read().pooled, expected(), rtol=1e-5)
    assert "its content does not match its checksum" in caplog.text
