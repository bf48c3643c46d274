"""What a run is on disk: directory, checkpoints, and the trained parts loaded from them."""
