"""Images to upload."""

from PIL import Image

from simflow_plugin.runs.parts import build_dataset


def held_out_image(run, index):
    """Return a held-out image of a run's data set as a PIL image."""
    pixels = build_dataset(run.loaded.config, "test")[index].image
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
