"""Several seeds end in one table: mean and range of what all of them measured."""

from dataclasses import replace

from simflow_plugin.studies.definitions import CIFAR_FIXED_VARIANCE, FIXED_VARIANCE
from simflow_plugin.studies.seeds import seeds_table
from tests.studies.test_table import document


def cells_of(text, label):
    row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_means_and_ranges_over_seeds():
    documents = {0: document([6, 5, 4, 3, 2, 1]), 7: document([6, 5, 4, 3, 2, 3])}
    text = seeds_table(FIXED_VARIANCE, documents)
    cells = cells_of(text, "end to end, fixed variance (SimFlow)")
    assert cells[2] == "2.00 [1.00, 3.00]"
    assert cells[5] == "75.0 [75.0, 75.0]"
    assert "Mean over the seeds 0, 7" in text


def test_order_is_counted_seed_by_seed():
    documents = {0: document([6, 5, 4, 3, 2, 1]), 1: document([1, 2, 3, 4, 5, 6])}
    assert "seed by seed: 15 of 15, 0 of 15" in seeds_table(FIXED_VARIANCE, documents)


def test_variant_that_a_seed_has_not_measured_is_left_out():
    text = seeds_table(FIXED_VARIANCE, {0: document([6, 5, 4, 3, 2, 1]), 1: document([6, 5])})
    assert "frozen VAE, fixed variance |" in text
    assert "(SimFlow) |" not in text


def test_distances_are_those_of_the_studys_extractor():
    content = document([6, 5, 4, 3, 2, 1])
    for variant in content["variants"].values():
        variant["metrics"]["0"]["fd_tf_efficientnet_lite0_96"] = 50.0
    study = replace(CIFAR_FIXED_VARIANCE, published_as="")
    cells = cells_of(seeds_table(study, {0: content, 1: content}), "frozen VAE, fixed variance")
    assert cells[2] == "50.00 [50.00, 50.00]"
