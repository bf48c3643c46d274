"""What a run will cost: memory per device, work per image and days, before a GPU is rented."""
