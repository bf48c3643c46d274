"""Adapters that make a part speak a host's own interface."""
