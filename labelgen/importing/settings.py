"""What ``labelgen import`` can be asked to do. Nothing here needs torch: the command line shows it as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sum_factory.labelgen.settings import UNIT_SIZE, WAIT_SECONDS, Missing
from sum_factory.shared.exactness import Exactness
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.shards.dataset import TAR

Format = Literal["sa1b", "coco", "labelme", "label-studio"]


@dataclass(frozen=True)
class ImportSettings:
    """What ``labelgen import`` was asked to do."""

    format: Format
    """sa1b: a JSON file per photo, as in SA-1B. coco: files of COCO instances, with RLE or polygons. labelme: its JSON
    files, one per photo. label-studio: projects, exported as JSON."""
    annotations: tuple[str, ...]
    """Of sa1b and labelme, folders of JSON files or tars with them, such as SA-1B's own; of the others, the files."""
    images: tuple[str, ...]
    """Where photos are: folders, tars, list files, patterns and single images, at paths or URLs."""
    shards: str
    """Folder or URL of the shard set."""
    sam: str = PACKAGED
    """The SAM that maps are to be made with later: a file, a folder, an id on the Hugging Face hub, or vit_micro. The
    side of its input decides how fine the labels are."""
    model_type: str | None = None
    """vit_micro, vit_b, vit_l or vit_h: other weights are refused. By default it is read off the weights."""
    exactness: Exactness = "exact"
    """At which level SAM is to run when maps are made."""
    unit_size: int = UNIT_SIZE
    """Photos per unit, which are committed and lost together."""
    extend: bool = False
    """Add photos that are new to the shard set that is there, whose own photos keep their masks."""
    encoding: str = TAR
    """How layers lie on disk: tar takes fewer bytes, zarr is read faster."""
    wait_for_photos: float = WAIT_SECONDS
    """Seconds to wait, in all, for a disk, folder or store that is gone while the import works. Then it ends."""
    missing_photos: Missing = "wait"
    """What is done about photos that are gone together with all beside them: wait, or record that they are gone."""
    retry_errors: str | None = None
    """Make units anew that lack photos because of an error: "all", or those of whose errors one says this."""
    max_errors: int | None = None
    """Stop when more photos than this could not be imported. By default it goes on, however many they are."""
    threads: int | None = None
    """Cores of this machine to use. By default all that this process may use."""
    log: str | None = None
    """File to which one JSON line is appended for everything that happens. By default there is none."""
