"""Names of feature extractors as they stand in the names of metrics."""

import re


def suffix_of(extractor: str) -> str:
    """Return the suffix of metrics in the features of `extractor`: `timm:resnet50@96` gives `resnet50_96`."""
    return re.sub(r"[^a-z0-9]+", "_", extractor.lower().removeprefix("timm:")).strip("_")
