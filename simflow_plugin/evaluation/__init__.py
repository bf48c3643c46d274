"""Generation, reconstruction, likelihood and latent-space metrics."""
