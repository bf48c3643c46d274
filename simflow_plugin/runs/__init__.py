"""A run on disk: its directory, its checkpoints, and the trained parts loaded from them."""
