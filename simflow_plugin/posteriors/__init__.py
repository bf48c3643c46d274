"""Posterior heads, one registered class each: from the encoder's output to q(z given x)."""
