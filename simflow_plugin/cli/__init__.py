"""One file per command of the `simflow` console script."""
