"""One file per generative model in the harness."""
