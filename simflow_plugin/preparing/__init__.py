"""Data prepared once for many runs: image shards, and latents of a trained autoencoder, each with a card."""
