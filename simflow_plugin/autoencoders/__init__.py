"""Posterior heads and the autoencoders that carry them."""
