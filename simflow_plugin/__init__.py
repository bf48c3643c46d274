"""SimFlow as a plugin: end-to-end training of latent normalizing flows in the codebase you already have.

Importing this package is cheap: it imports neither torch nor any third-party part.
"""

__version__ = "0.1.0"
