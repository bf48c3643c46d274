"""Parts that the diffusion baselines share: interpolants, time sampling, samplers, the adaLN-zero transformer."""
