"""Runs on disk: the directory, checkpoints, and the trained parts loaded from them."""
