"""Adapters of our models and autoencoders to the interfaces of host codebases."""
