"""Types of options in words."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt

from simflow_plugin.config.option_facts import bounds, literals, type_in_words
from simflow_plugin.options import MomentDecay
from simflow_plugin.registry import Part


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "integer"),
        (float | None, "number, or null"),
        (bool | Literal["auto"], "true or false or name"),
        (list[PositiveInt] | None, "list of integers > 0, or null"),
        (tuple[MomentDecay, MomentDecay], "list of 2 numbers >= 0, < 1"),
        (tuple[int, ...], "list of integers"),
        (tuple[str, int], "list of text, integer"),
        (str | list[str], "text or list of texts"),
        (dict[str, Any], "mapping"),
        (list[dict[str, Any]], "list of mappings"),
        (Annotated[PositiveInt | None, "a note"], "integer > 0, or null"),
        (Part | None, "name, or mapping with a name and options, or null"),
    ],
)
def test_type_is_said_in_words(annotation, words):
    assert type_in_words(annotation) == words


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"gt": 0}, "> 0"),
        ({"ge": 0, "lt": 1}, ">= 0, < 1"),
        ({"ge": 1, "le": 1024}, ">= 1, <= 1024"),
        ({"min_length": 2, "max_length": 3}, "at least 2 long, at most 3 long"),
        ({}, ""),
    ],
)
def test_constraints_are_a_range(constraints, words):
    assert bounds(Field(**constraints).metadata) == words


def test_literals_are_found_at_any_depth():
    assert literals(Literal["a", "b"] | tuple[Literal["c"], ...] | None) == ["a", "b", "c"]
