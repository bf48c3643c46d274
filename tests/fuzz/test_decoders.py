"""Damaged files of every format: decoded, or refused by name. The long run is `python -m tests.fuzz.decoders`."""

import warnings

import numpy as np
import pytest

from tests.fuzz.decoders import outcome
from tests.fuzz.mutations import mutants, seed_files

SEEDS = seed_files()
MUTANTS = 150


@pytest.mark.parametrize("name", SEEDS)
def test_undamaged_file_is_decoded(name):
    assert outcome(SEEDS[name]) == "decoded"


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.filterwarnings("ignore")
def test_no_damaged_file_ends_a_run(name):
    random = np.random.default_rng(list(name.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [outcome(content) for content in mutants(SEEDS[name], MUTANTS, random)]
    assert len(outcomes) == MUTANTS
    assert set(outcomes) != {"decoded"}
