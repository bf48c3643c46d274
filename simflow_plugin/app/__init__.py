"""A page in the browser for one trained run: samples, likelihood of an image, interpolation (extra `app`)."""
