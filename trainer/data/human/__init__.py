"""Human masks from the layouts in use: folder pairs, label maps, COCO and VIA files.

A set is checked when it is opened: which files are there and belong together, that sizes fit, what in a mask is
foreground. What cannot be used is refused then, or left out if the recipe says so, and counted. Samples are read by
index, and only the masks that are asked for are decoded. Nothing is replaced silently.
"""

from sum_factory.trainer.data.human.choice import Choice
from sum_factory.trainer.data.human.coco import CocoInstances
from sum_factory.trainer.data.human.folder_pairs import FolderPairs
from sum_factory.trainer.data.human.joined import JoinedSets
from sum_factory.trainer.data.human.label_maps import LabelMaps
from sum_factory.trainer.data.human.pascal_part import PascalPart
from sum_factory.trainer.data.human.samples import HumanSample, HumanSet, Masks

__all__ = [
    "Choice",
    "CocoInstances",
    "FolderPairs",
    "HumanSample",
    "HumanSet",
    "JoinedSets",
    "LabelMaps",
    "Masks",
    "PascalPart",
]
