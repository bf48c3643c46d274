"""Reconstruction losses: pixel, perceptual, adversarial."""
