"""The commands of the `simflow` console script."""
