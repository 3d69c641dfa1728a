"""What only concerns GPUs: how much they work on at once, when they were busy, and photos that they decode."""
