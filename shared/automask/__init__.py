"""Automatic masks of a photo: proposed, measured, cleaned. Labelling makes labels of them, evaluation judges them."""
