"""The tables state what was measured, of one seed or of several, beside what was published, and what is missing."""

from dataclasses import replace

from simflow_plugin.studies.definitions import CIFAR_FIXED_VARIANCE, FIXED_VARIANCE
from simflow_plugin.studies.table import same_order_pairs, seeds_table, to_markdown


def cells_of(text, label):
    row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def measured(distance):
    cost = {"model_parameters": 1_000_000, "autoencoder_parameters": 500_000, "steps": 10}
    cost |= {"training_flops": 2_000_000, "sampling_flops": 3_000_000, "train_seconds": 7.0}
    return {
        "metrics": {"0": {"fd_pretrained": distance, "class_agreement": 0.75, "psnr": 20.0}},
        "intervals": {"0": {"class_agreement": [0.7, 0.8]}},
        "cost": {"0": cost},
        "batch_size": 32,
    }


def document(distances):
    names = [v.name for v in FIXED_VARIANCE.variants]
    return {
        "settings": {"budget": 0.1, "num_samples": 100, "num_held_out": 50},
        "autoencoders": {
            name: {"steps": 20, "train_seconds": 3.0, "training_flops": 1_000_000}
            for name in FIXED_VARIANCE.autoencoders
        },
        "variants": {n: measured(d) for n, d in zip(names, distances, strict=False)},
        "real": {"fd_pretrained": 0.5, "class_agreement": 0.9},
    }


def test_published_order_agrees_with_itself_and_its_reverse_in_no_pair():
    ordered, reverse = document([6, 5, 4, 3, 2, 1])["variants"], document([1, 2, 3, 4, 5, 6])["variants"]
    assert same_order_pairs(FIXED_VARIANCE, ordered) == (15, 15)
    assert same_order_pairs(FIXED_VARIANCE, reverse) == (0, 15)


def test_order_is_counted_by_every_metric_that_was_measured():
    """FD in the published order, agreement against it; the distance to reconstructions of two variants only."""
    content = document([6, 5, 4, 3, 2, 1])
    for place, variant in enumerate(content["variants"].values()):
        variant["metrics"]["0"]["class_agreement"] = 0.9 - 0.1 * place
        if place < 2:
            variant["metrics"]["0"]["fd_to_reconstructions_pretrained"] = 1.0 - place
    text = to_markdown(FIXED_VARIANCE, content)
    assert "15 of 15 by FD, 1 of 1 by FD to reconstructions, 0 of 15 by class agreement" in text


def test_latent_bits_stand_with_the_error_of_their_draws():
    content = document([6, 5, 4, 3, 2, 1])
    for variant in content["variants"].values():
        variant["metrics"]["0"]["latent_bits_per_dim"] = 1.5
        variant["draws_errors"] = {"0": {"latent_bits_per_dim": 0.00213}}
    assert "| 1.500 ± 0.002 |" in to_markdown(FIXED_VARIANCE, content)


def test_table_shows_measured_and_published_side_by_side():
    text = to_markdown(FIXED_VARIANCE, document([6, 5, 4, 3, 2, 1]))
    cells = cells_of(text, "end to end, fixed variance (SimFlow)")
    assert cells[2:4] == ["1.000", "75.0% (70.0% to 80.0%)"]
    assert cells[-3:] == ["1", "16.97", "1"]
    assert "FID" not in text.splitlines()[2].replace("no FID", "")


def test_cost_of_training_includes_the_autoencoder_that_was_trained_before():
    """10 steps of 32 images at 2 MFLOPs, and for a frozen variant 20 more at 1 MFLOP: 0.64 and 1.28 GFLOPs."""
    content = document([6, 5, 4, 3, 2, 1])
    for variant in content["variants"].values():
        variant["cost"]["0"]["training_flops"] = 2_000_000_000
    for autoencoder in content["autoencoders"].values():
        autoencoder["training_flops"] = 1_000_000_000
    text = to_markdown(FIXED_VARIANCE, content)
    assert cells_of(text, "frozen VAE, fixed variance")[13:16] == ["10 + 20", "1.3", "7 + 3"]
    assert cells_of(text, "end to end with noise")[13:16] == ["10", "0.6", "7"]


def test_figure_that_an_earlier_version_left_out_is_a_dash():
    content = document([6, 5, 4, 3, 2, 1])
    with_noise, fixed = content["variants"]["end_to_end_noise"], content["variants"]["end_to_end_fixed"]
    del with_noise["batch_size"], fixed["cost"]["0"]["training_flops"]
    text = to_markdown(FIXED_VARIANCE, content)
    assert cells_of(text, "end to end with noise")[11:16] == ["2", "3", "10", "-", "7"]
    assert cells_of(text, "end to end, fixed variance (SimFlow)")[11:16] == ["-", "3", "10", "-", "7"]


def test_missing_variants_are_named():
    text = to_markdown(FIXED_VARIANCE, document([6, 5]))
    assert "Not measured yet: frozen VAE, fixed variance, layer norm, frozen encoder with noise" in text


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
