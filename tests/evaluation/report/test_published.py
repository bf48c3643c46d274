"""The published block: complete, ordered, and never taken for measured."""

import re

import pytest

from simflow_plugin.evaluation.report.html import Cell
from simflow_plugin.evaluation.report.published import IMAGENET_256, IMAGENET_512, published_tables


@pytest.mark.parametrize("results", [IMAGENET_256, IMAGENET_512])
def test_every_row_names_its_paper_and_the_best_is_last(results):
    gfids = [result.guided.gfid for result in results]
    assert gfids == sorted(gfids, reverse=True)
    for result in results:
        assert re.fullmatch(r"\d{4}\.\d{5}", result.arxiv)
        assert result.unguided is None or result.unguided.gfid > result.guided.gfid


def test_tables_are_marked_as_published():
    for table in published_tables():
        assert table.caption.endswith("published")
        assert any("nothing in this block was measured here" in note for note in table.notes)
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_what_another_paper_measured_says_so():
    (row,) = [row for row in published_tables()[0].rows if row[0] == "SimFlow-L"]
    assert row[-1] == Cell("arXiv:2512.04084", "measured in arXiv:2606.26016")


def test_published_block_is_of_imagenet_only():
    assert [published_tables(count) for count in (None, 10, 100)] == [[], [], []]
    assert len(published_tables(1000)) == 2
