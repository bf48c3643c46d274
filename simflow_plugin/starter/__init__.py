"""First configuration for a folder of images: look at it, choose sizes, time a few steps here, write YAML."""
