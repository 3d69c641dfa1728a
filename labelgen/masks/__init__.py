"""Masks of a photo: proposed, measured, cleaned."""
