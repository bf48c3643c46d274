"""README.md of prepared data: what it is, how it was made, how it is read, and what it must be by its digests."""

from __future__ import annotations

from typing import Any


def images_card(name: str, card: dict[str, Any]) -> str:
    """Return the README of image shards, from what `dataset.json` holds."""
    size, classes, splits = card["image_size"], card["classes"], card["splits"]
    damaged = [f"- {problem}" for facts in splits.values() for problem in facts["damaged"]]
    shards = [shard for facts in splits.values() for shard in facts["shards"]]
    lines = [
        f"# {name}",
        "",
        f"Images of the data set `{card['data']['name']}`, center-cropped to {size} x {size} pixels and stored as "
        f"{card['image_format']} in webdataset shards by `simflow prepare`."
        + (f" {len(classes)} classes, named in `dataset.json`." if classes else " No classes."),
        "",
        "| split | images | damaged, left out | shards | bytes |",
        "|---|---|---|---|---|",
    ]
    for split, facts in splits.items():
        volume = sum(shard["bytes"] for shard in facts["shards"])
        lines.append(
            f"| {split} | {facts['images']} | {len(facts['damaged'])} | {len(facts['shards'])} | {volume} |"
        )
    lines += ["", "To train on it:", "", "```yaml", f"image_size: {size}", "data:", "  name: webdataset"]
    lines += ["  shards: FOLDER/train-*.tar"] if "train" in splits else []
    lines += ["  test_shards: FOLDER/test-*.tar"] if "test" in splits else []
    lines += ["```", ""]
    lines += ["## Damaged images, left out", "", *damaged, ""] if damaged else []
    lines += digests(shards)
    return "\n".join(lines) + "\n"


def digests(files: list[dict[str, Any]]) -> list[str]:
    """Return a section of SHA-256 digests, in the layout of `sha256sum --check`."""
    return ["## SHA-256", "", "```", *(f"{file['sha256']}  {file['name']}" for file in files), "```"]


def latents_card(name: str, card: dict[str, Any]) -> str:
    """Return the README of latents, from what `dataset.json` holds."""
    channels, height, width = card["latent_shape"]
    lines = [
        f"# {name}",
        "",
        f"Latents ({channels}, {height}, {width}) of {card['images']} images ({card['image_size']} x "
        f"{card['image_size']}, {card['split']} split of `{card['data']}`), by the autoencoder of `{card['run']}` at "
        f"step {card['step']} ({card['weights']} weights, {card['precision']}), written by `simflow latents`. "
        f"{card['damaged']} damaged images were left out.",
        "",
        "Each file holds, in float32 and in the normalised latent space of that run: `latents`, `latents_flip` (a "
        f"sample of the posterior of the image and of its mirror image, seed {card['seed']}), `labels`, `moments`, "
        "`moments_flip` (mean and log-variance) and `indices`. Decode with `simflow_plugin.load(RUN).decode(latents)`. "
        "`latents_stats.pt` holds mean and std by channel of `latents`.",
        "",
        "Layout: LightningDiT's (`data_path` is this folder)"
        + (", and REPA-E's (`latents.h5`, `latents_h5.json`)." if card["layout"] == "repa-e" else "."),
        "",
        *digests(card["files"]),
    ]
    return "\n".join(lines) + "\n"
