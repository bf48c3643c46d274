"""Data sets of images, and the loader that orders them."""
