"""The published block: complete, ordered, and never taken for measured."""

import re

import pytest

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.evaluation.report.published import is_imagenet, published_tables


@pytest.mark.parametrize("table", published_tables())
def test_every_row_names_its_paper_and_the_best_is_last(table):
    gfids = [float(row[1].text) for row in table.cells()]
    assert gfids == sorted(gfids, reverse=True)
    for _, guided, unguided, *_, paper in table.cells():
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", paper.text)
        assert unguided.text == "—" or float(unguided.text) > float(guided.text)


def test_tables_are_marked_as_published():
    for table in published_tables():
        assert table.caption.endswith("published")
        assert any("nothing in this block was measured here" in note for note in table.notes)
        assert {len(row) for row in table.rows} == {len(table.columns)}


def of_data(**options):
    return RunConfig.model_validate(
        {
            "name": "a",
            "image_size": 256,
            "data": options,
            "autoencoder": "kl",
            "training": {"steps": 1, "batch_size": 1},
        }
    )


WORDNET = [f"n{number:08d}" for number in range(1000)]
NUMBERS = [str(number) for number in range(1000)]


@pytest.mark.parametrize(
    ("options", "names", "expected"),
    [
        ({"name": "image_folder", "root": "/x"}, WORDNET, True),
        ({"name": "image_folder", "root": "/x/ImageNet/train"}, NUMBERS, True),
        ({"name": "huggingface", "path": "ILSVRC/imagenet-1k"}, NUMBERS, True),
        ({"name": "hdf5", "root": "/data/imagenet_256"}, None, True),
        ({"name": "webdataset", "root": "/data/imagenet", "shards": "a.tar"}, NUMBERS, True),
        ({"name": "webdataset", "shards": ["/data/imagenet1k-train-{0000..1023}.tar"]}, NUMBERS, True),
        ({"name": "image_folder", "root": "/x"}, WORDNET[:1] * 1000, False),
        ({"name": "image_folder", "root": "/x/faces"}, NUMBERS, False),
        ({"name": "image_folder", "root": "/data/imagenet-c"}, NUMBERS, False),
        ({"name": "image_folder", "root": "/data/not_imagenet"}, NUMBERS, False),
        ({"name": "image_folder", "root": "/data/imagenet-a/imagenet_v2"}, NUMBERS, False),
        ({"name": "image_folder", "root": "/x/imagenet-r"}, NUMBERS, False),
        ({"name": "image_folder", "root": "/x/imagenet100"}, NUMBERS[:100], False),
        ("digits", NUMBERS[:10], False),
    ],
)
def test_published_block_stands_beside_imagenet_only(options, names, expected):
    config = of_data(**options) if isinstance(options, dict) else of_data(name=options)
    assert is_imagenet(config, 1000 if names is None else len(names), names) is expected
