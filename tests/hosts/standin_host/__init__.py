"""A small host written for the tests: dictionaries of parts, samplers, and a loop with two calls to the model."""
