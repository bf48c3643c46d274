"""The transformer autoregressive flow: usable without the rest of the package."""
