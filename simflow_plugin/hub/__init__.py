"""Trained runs for others: exported folders, model cards, a diffusers pipeline."""
