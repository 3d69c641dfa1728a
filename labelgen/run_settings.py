"""What ``labelgen run`` and ``labelgen uncertainty`` can be asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sum_factory.labelgen.settings import (
    SILENT_SECONDS,
    STUCK_SECONDS,
    UNIT_SIZE,
    WAIT_SECONDS,
    Missing,
    UncertaintySettings,
)
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.exactness import Exactness
from sum_factory.shared.relocation import UNMOVED, Relocation
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import PACKAGED, TASKS
from sum_factory.shared.shards.dataset import REFINEMENT, TAR


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Who works, and what is done about what fails: as ``labelgen run`` and ``labelgen uncertainty`` are asked to.

    ``workers`` 0 works in this process, without Ray. ``threads`` is how many cores of this machine to use, by default
    all that this process may use. They are divided among the workers on this machine, unless ``cpus_per_worker`` says
    what each gets; on a running cluster it is 1.
    """

    points_per_batch: int | None = None
    """Points decoded together. Fewer take less memory; results change by rounding errors at most. By default as many as
    fit into a GPU's memory, elsewhere 64."""
    photos_per_batch: int | None = None
    """Photos that the image encoder takes together. By default as many as fit into a GPU's memory, up to 8, elsewhere
    1."""
    gpu_memory: float | None = None
    """Share of a GPU's memory that a worker may take. By default 0.9, of which workers that share a GPU take their
    part."""
    workers: int = 0
    """Ray actors that label. 0 works in this process, without Ray."""
    ray_address: str | None = None
    """Address of a running Ray cluster, or "auto". By default one is started on this machine if there are workers."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker: 1, or 0.5 for two workers per GPU. 0 is none."""
    cpus_per_worker: float | None = None
    """Photos that a worker labels at once, one per core. By default the cores of this machine are divided among
    workers; on a running cluster it is 1."""
    threads: int | None = None
    """Cores of this machine to use. By default all that this process may use."""
    wait_for_photos: float = WAIT_SECONDS
    """Seconds to wait, in all, for a disk, folder or store that is gone while the run works. Then the run ends."""
    missing_photos: Missing = "wait"
    """What is done about photos that are gone together with all beside them: wait, or record that they are gone."""
    retry_errors: str | None = None
    """Make units anew that lack photos because of an error: "all", or those of whose errors one says this."""
    silent_after: float = SILENT_SECONDS
    """Seconds after which a Ray worker is replaced that is not heard of: it was stopped, or is out of reach."""
    stuck_after: float = STUCK_SECONDS
    """Seconds after which a Ray worker is replaced that is heard of, and gets nothing done, not even a part of a photo.
    Waiting for photos counts as getting on: ``wait_for_photos`` limits that."""
    max_errors: int | None = None
    """Stop when more photos than this could not be labelled. By default the run goes on, however many they are."""
    log: str | None = None
    """File to which one JSON line is appended for everything that happens. By default there is none."""


@dataclass(frozen=True)
class RunSettings(WorkerSettings):
    """What ``labelgen run`` was asked to do.

    ``automask`` may name some settings alone: the others are the defaults of the model. With ``extend``, photos that a
    shard set does not have are added to it.

    With the path of a ``refiner``, the run adds the uncertainty layer ``layer_name`` in the same pass; ``keep_photos``
    adds the photos at SAM's input side, ``keep_logits`` the masks' full logits, ``keep_embeddings`` what the image
    encoder made of them.
    """

    images: tuple[str, ...]
    """Where photos are: folders, tars, zips, list files, patterns and single images, at paths or URLs."""
    shards: str
    """Folder or URL of the shard set."""
    sam: str = PACKAGED
    """SAM's weights: a file, a folder, an id on the Hugging Face hub, or vit_micro, which ships here."""
    model_type: str | None = None
    """vit_micro, vit_b, vit_l or vit_h: other weights are refused. By default it is read off the weights."""
    task: str = TASKS[0]
    """Of weights with a task prompt, such as SUM's own, the task whose vector is given with every point."""
    automask: AutomaskSettings | Mapping[str, float | None] = field(default_factory=AutomaskSettings)
    """Grid of points and filters: which masks are kept. All settings, or some, with the model's own for the others."""
    refiner: str | None = None
    """Weights of a refiner, or vit_micro for the one that ships here. Without it no maps are made."""
    layer_name: str = REFINEMENT
    """Name of the layer of maps, as in ``uncertainty/NAME``. Maps of another refiner need another one."""
    min_refine_area: int = 0
    """Masks of fewer pixels, in a crop whose longer side is 1024, are not refined but taken as certain. 0 refines
    all."""
    keep_photos: bool = False
    """Keep the photos, scaled to SAM's input side: training then needs no access to the originals."""
    keep_logits: bool = False
    """Keep SAM's logits of each mask: maps of confidence or entropy then need neither photos nor the encoder."""
    keep_embeddings: bool = False
    """Keep what the image encoder made of each photo: a later refiner then needs neither photos nor the encoder."""
    runtime: Runtime = field(default_factory=Runtime)
    """Device, how near masks are to upstream's, and whether encoder and decoder are compiled."""
    stretch: bool = False
    """Stretch photos of more than 8 bits a channel, each from its darkest to its brightest values: for data in fewer
    bits than their files have. By default white is what the file calls white."""
    unit_size: int = UNIT_SIZE
    """Photos per unit, which are scheduled, committed and lost together. Give fewer where many workers share few
    photos."""
    extend: bool = False
    """Add photos that are new to the shard set that is there."""
    encoding: str = TAR
    """How layers lie on disk: tar takes fewer bytes, zarr is read faster."""

    def keeps(self, layer: str) -> bool:
        """Whether a kept layer is to be made: ``keep_`` and its name is a setting."""
        return bool(getattr(self, f"keep_{layer}"))


@dataclass(frozen=True)
class UncertaintyRunSettings(WorkerSettings):
    """What ``labelgen uncertainty`` was asked to do: add a layer to masks that are there.

    ``layer_name`` is by default the name of the source. ``use_kept`` names the kept layers that maps are made from, as
    far as they go. ``photos_from`` says where photos lie now that have moved since they were labelled. ``exactness``
    must equal that of the masks; None takes it. ``runtime.exactness`` is ignored.
    """

    shards: str
    """Folder or URL of the shard set whose masks get maps."""
    refiner: str | None = None
    """Weights of a refiner, or vit_micro for the one that ships here. The source refinement takes one; so does
    discrepancy, as a second decoder."""
    teacher: str | None = None
    """Weights of another SAM, which the source discrepancy compares with: that of a run on human masks, for example."""
    layer_name: str | None = None
    """Name of the layer of maps, as in ``uncertainty/NAME``. By default that of the source."""
    photos_from: Relocation = UNMOVED
    """Where photos lie now that have moved since they were labelled."""
    encoding: str = TAR
    """How layers lie on disk: tar takes fewer bytes, zarr is read faster."""
    uncertainty: UncertaintySettings = field(default_factory=UncertaintySettings)
    """Which source the maps are made by, and which masks are not refined."""
    use_kept: tuple[str, ...] = ()
    """Kept layers that maps are made from, as far as they go: logits, embeddings, or both."""
    sam: str = PACKAGED
    """SAM's weights: a file, a folder, an id on the Hugging Face hub, or vit_micro, which ships here."""
    model_type: str | None = None
    """vit_micro, vit_b, vit_l or vit_h: other weights are refused. By default it is read off the weights."""
    runtime: Runtime = field(default_factory=Runtime)
    """Device, how near masks are to upstream's, and whether encoder and decoder are compiled."""
    exactness: Exactness | None = None
    """How near the logits that maps are made of are to upstream's. By default as the masks; any other is refused."""
