"""The forms in which people hold SAM's weights; each is turned into the names and tensors of the official files.

``reading`` reads a file or folder, ``hub`` fetches one, ``names`` finds the model in what was read; ``hugging_face``,
``hq_sam`` and ``sum_public`` rename and sort out, ``strangers`` names what is refused; ``convert`` calls them all.
"""
