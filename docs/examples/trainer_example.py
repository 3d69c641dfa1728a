from pathlib import Path

from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.training import fit

masks = {"kind": "folder-pairs", "images": "human/photos", "masks": "human/masks", "task": "salient"}
recipe = Recipe(human=[masks], shards="labels", method="sum", steps=2, batch=2, masks=4, rounds=2)
summary = fit(recipe, Path("run"))
print(summary.lines(), "run/weights.safetensors")
