"""Weights of other codebases turned into ours, key by key, shapes checked."""
