"""Real photos: what a model learns from coarse masks of them, and the ablation on them."""
