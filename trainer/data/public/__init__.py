"""Public sets of photos and masks: what each is, where to get it, and in which layouts it lies on disks.

Each is an entry of a YAML file beside this one. Its layouts are settings of the usual readers, with paths relative to
the folder that ``locate`` finds.
"""

from sum_factory.trainer.data.public.declarations import Fact, PublicSet, Task, public_set, public_sets
from sum_factory.trainer.data.public.places import locate

__all__ = ["Fact", "PublicSet", "Task", "locate", "public_set", "public_sets"]
