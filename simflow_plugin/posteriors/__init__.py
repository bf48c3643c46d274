"""Posterior heads: from the encoder's output to q(z given x)."""
