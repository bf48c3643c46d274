"""Processes, and the gathering and sharding of their state."""
