"""Measure the flow on this machine: GEMM speed, training step, every sampler, and ml-starflow beside it."""
