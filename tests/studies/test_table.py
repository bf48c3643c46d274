"""The table states what was measured, beside what was published, and what is missing."""

from simflow_plugin.studies.definitions import FIXED_VARIANCE
from simflow_plugin.studies.table import same_order_pairs, to_markdown


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


def test_published_order_agrees_with_itself():
    content = document([6, 5, 4, 3, 2, 1])
    assert same_order_pairs(FIXED_VARIANCE, content["variants"]) == (15, 15)


def test_reversed_order_agrees_in_no_pair():
    content = document([1, 2, 3, 4, 5, 6])
    assert same_order_pairs(FIXED_VARIANCE, content["variants"]) == (0, 15)


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
    row = next(line for line in text.splitlines() if line.startswith("| end to end, fixed variance"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
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
    rows = [line.split(" | ") for line in to_markdown(FIXED_VARIANCE, content).splitlines()]
    cells = {row[0].strip("| "): row[13:16] for row in rows if len(row) > 15}
    assert cells["frozen VAE, fixed variance"] == ["10 + 20", "1.3", "7 + 3"]
    assert cells["end to end with noise"] == ["10", "0.6", "7"]


def test_missing_variants_are_named():
    text = to_markdown(FIXED_VARIANCE, document([6, 5]))
    assert "Not measured yet: frozen VAE, fixed variance, layer norm, frozen encoder with noise" in text
