"""Masks, maps, logits, embeddings and photos as bytes, and back."""
