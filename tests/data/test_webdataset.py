import gzip
import http.server
import json
import os
import threading

import pytest
import torch

from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.loader import make_loader
from simflow_plugin.data.order import GlobalBatches
from simflow_plugin.data.tar_shards import expand_range
from simflow_plugin.data.webdataset import WebDataset
from simflow_plugin.errors import DataError
from tests.data.makers import CORRUPT, numbered_shard, png, write_shard


@pytest.fixture
def shards(tmp_path):
    """Two shards of ten pictures; grey value v, class v mod 2."""
    for number in range(2):
        numbered_shard(tmp_path / "shards" / f"train-{number:03d}.tar", range(10 * number, 10 * number + 10))
    return tmp_path


def load(folder, shards, split="train", allows_pipes=False, **options) -> WebDataset:
    options = {"test_share": 0.2, **options}
    return WebDataset(
        WebDataset.Options(shards=shards, cache=str(folder / "cache"), **options),
        DataContext(16, split, allows_pipes=allows_pipes),
    )


@pytest.mark.parametrize("pattern", ["train-{000..001}.tar", "train-*.tar"])
def test_all_images_are_found_with_their_labels(shards, pattern):
    dataset = load(shards, str(shards / "shards" / pattern))
    values = [int(dataset[i].image[0, 0, 0]) for i in range(len(dataset))]
    assert len(values) == 16
    assert [value % 2 for value in values] == [dataset[i].label for i in range(16)]


def test_addresses_are_fetched_once(shards):
    address = f"file://{shards}/shards/train-{{000..001}}.tar"
    first = load(shards, address)
    for path in (shards / "shards").iterdir():
        path.unlink()
    assert torch.equal(load(shards, address)[3].image, first[3].image)


def test_output_of_a_command_is_a_shard(shards):
    dataset = load(shards, f"pipe:cat {shards}/shards/train-000.tar", allows_pipes=True)
    assert len(dataset) == 8


def test_resumed_order_is_bitwise_equal(shards):
    pattern = str(shards / "shards" / "*.tar")
    whole = list(make_loader(load(shards, pattern), GlobalBatches(4), 0, range(9)))
    resumed = list(make_loader(load(shards, pattern), GlobalBatches(4), 0, range(5, 9), num_workers=1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[5:], resumed, strict=True))


def test_changed_shard_is_indexed_again(shards):
    path = shards / "shards" / "train-000.tar"
    load(shards, str(path))
    numbered_shard(path, range(50, 80))
    assert len(load(shards, str(path))) == 24


def test_own_test_shards_are_used_whole(shards):
    train, test = (str(shards / "shards" / f"train-00{number}.tar") for number in (0, 1))
    assert len(load(shards, train, "test", test_shards=test)) == 10
    assert len(load(shards, train, "train", test_shards=test)) == 10


def test_labels_in_json_members(tmp_path):
    samples = [(f"{v:03d}", {"jpg": png(v), "json": b'{"label": %d}' % (v % 3)}) for v in range(30)]
    dataset = load(tmp_path, str(write_shard(tmp_path / "a.tar", samples)))
    assert dataset.num_classes == 3


def test_shards_without_labels_are_unlabelled(tmp_path):
    samples = [(f"{v:03d}", {"png": png(v), "txt": b"words"}) for v in range(30)]
    assert load(tmp_path, str(write_shard(tmp_path / "a.tar", samples)))[0].label == NO_LABEL


def test_corrupt_image_is_replaced(tmp_path):
    samples = [(f"{v:03d}", {"png": CORRUPT if v == 3 else png(v)}) for v in range(30)]
    shard = str(write_shard(tmp_path / "a.tar", samples))
    dataset = load(tmp_path, shard, max_corrupt_share=0.2, test_share=0.01)
    loader = make_loader(dataset, GlobalBatches(30), 0, range(1))
    list(loader)
    assert loader.corrupt == {3}


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:1000], gzip.compress, lambda content: b"no tar" * 500]
)
def test_spoilt_shard_is_named(shards, spoil):
    path = shards / "shards" / "train-000.tar"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-000\.tar"):
        load(shards, str(path))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("pipe:cat /no/such/shard", r"cannot be fetched.*exit status"),
        ("file://{root}/gone.tar", r"gone\.tar: cannot be fetched"),
        ("{root}/none-*.tar", r"none-\*\.tar: no such shard"),
    ],
)
def test_shard_that_cannot_be_had_is_named(tmp_path, shards, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, shards.format(root=tmp_path), allows_pipes=True)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("a", {"txt": b"words"})], r"a\.tar: holds no image"),
        ([("a", {"png": png(1), "cls": b"0"}), ("b", {"png": png(2)})], "1 of 2 images"),
    ],
)
def test_shard_without_images_or_with_some_labels_is_named(tmp_path, samples, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, str(write_shard(tmp_path / "a.tar", samples)))


def test_ranges_keep_their_width():
    assert expand_range("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]


def test_libraries_read_the_same_samples(shards):
    webdataset = pytest.importorskip("webdataset", reason="compares with that package where it is installed")
    path = str(shards / "shards" / "train-000.tar")
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(path, shardshuffle=False)]
    ours = load(shards, path, test_share=0.01)
    assert [os.path.basename(name) for name in ours.names] == theirs


def test_damaged_index_is_made_anew(shards):
    pattern = str(shards / "shards" / "*.tar")
    expected = [load(shards, pattern)[i].label for i in range(3)]
    damaged = list((shards / "cache").rglob("*.npz"))
    for index in damaged:
        index.write_bytes(index.read_bytes()[:40])
    assert len(damaged) == 2
    assert [load(shards, pattern)[i].label for i in range(3)] == expected


def test_wrong_address_is_reported_at_once_with_the_servers_answer(tmp_path):
    asked = []

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/gone.tar"
        with pytest.raises(DataError, match=r"gone\.tar: cannot be fetched: HTTP Error 404"):
            load(tmp_path, address)
        server.shutdown()
    assert asked == ["/gone.tar"]


def carded(folder, classes, values):
    """A shard with the card of `simflow prepare` beside it, or without one."""
    numbered_shard(folder / "a.tar", values)
    if classes is not None:
        card = {"written_by": "simflow prepare", "classes": classes}
        (folder / "dataset.json").write_text(json.dumps(card))
    return str(folder / "a.tar")


def names(dataset):
    """The name of the class of each image, by its grey value."""
    return {
        int(image[0, 0, 0]): dataset.class_names[label]
        for image, label in map(dataset.__getitem__, range(len(dataset)))
    }


def test_shards_of_two_folders_have_the_names_of_their_own_card(tmp_path):
    first = carded(tmp_path / "first", ["ant", "bee"], range(10))
    second = carded(tmp_path / "second", ["bee", "ant"], range(10, 20))
    for order in ([first, second], [second, first]):
        found = names(load(tmp_path, order))
        assert all(name == ("ant", "bee")[(value % 2) ^ (value >= 10)] for value, name in found.items())
    train, test = load(tmp_path, first, test_shards=second), load(tmp_path, first, "test", test_shards=second)
    assert train.class_names == test.class_names == ["ant", "bee"]
    assert names(test) == {value: ("bee", "ant")[value % 2] for value in range(10, 20)}


@pytest.mark.parametrize("other", [None, ["cat", "dog"]], ids=["no card", "other classes"])
def test_classes_that_cannot_be_compared_are_refused(tmp_path, other):
    first = carded(tmp_path / "a", ["ant", "bee"], range(9))
    second = carded(tmp_path / "b", other, range(9, 20))
    together, apart = "other classes than the card", "no training image has"
    if other is None:
        together = apart = "cannot be compared"
    with pytest.raises(DataError, match=together):
        load(tmp_path, [first, second])
    for train, test in ((first, second), (second, first)):
        with pytest.raises(DataError, match=apart):
            load(tmp_path, train, "test", test_shards=test)
    assert load(tmp_path, [first, second], labels=False).class_names is None
