"""Cost estimates of a run: memory per device, work per image, days."""
