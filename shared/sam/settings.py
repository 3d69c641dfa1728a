"""Names of what can be chosen of a SAM. Nothing here needs torch, whose import takes seconds."""

from __future__ import annotations

PACKAGED = "vit_micro"
"""The model whose trained weights ship in the package."""
WEIGHTS_FILE = "weights.safetensors"
"""What a checkpoint's weights are called in the folder of a run."""
TASKS = ("unspecified", "salient", "entity", "part")
"""Task ids 0 to 3. Pseudo-labels are unspecified."""
THRESHOLDS_OF_MODELS = {"vit_micro": {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.8}}
"""Defaults that differ from the published ones: on a grid of 64 cells a mask of equal quality is less stable."""
WEIGHTS_HELP = f"a file (.pth, .safetensors), a folder, an id on the Hugging Face hub, or {PACKAGED}, which ships here"
"""What options about weights take."""
