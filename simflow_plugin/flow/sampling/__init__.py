"""Inverting the flow: `naive`, `cached`, `jacobi` and `auto`, chosen per block."""
