"""Shard sets and sets of human masks as datasets of ``torch.utils.data``, for training loops of other people.

Both give the same: a photo as SAM takes it, its masks on the same pixels, and how certain each of these is. A dataset
that is copied to a worker opens its files there anew, as connections and locks of a store outlive no fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.relocation import UNMOVED, Relocation
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.shards.dataset import REFINEMENT, uncertainty_layer
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.store.cache import Cache
from sum_factory.trainer.data.coded import Sample
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.order import Order
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.data.sets import SetSettings, open_set
from sum_factory.trainer.data.stream import HumanStream, PseudoStream
from sum_factory.trainer.evaluation.suites import Suite
from sum_factory.trainer.methods.method import Method
from sum_factory.trainer.settings import check_settings


class Item(TypedDict):
    """A photo with K masks. (h, w) is its size when its longer side is that of SAM's input."""

    key: str
    """What names the photo in its set."""
    task: str
    """What the masks are of: unspecified, as those of a shard set are, or salient, entity or part."""
    image: Tensor
    """Uint8 (3, h, w), RGB."""
    masks: Tensor
    """Bool (K, h, w)."""
    certainty: Tensor
    """Float32 (K, h, w): c = 1 - u, and 1 where no map is asked for, as for human masks."""


class _Stream(Protocol):
    """A stream of samples, as training reads it."""

    @property
    def order(self) -> Order: ...

    def load(self, index: int, id: SampleId) -> Sample: ...


class PhotosWithMasks(Dataset[Item]):
    """Photos with masks by index, of either kind; the same index gives the same item in an epoch."""

    def __init__(self, name: str, settings: SampleSettings) -> None:
        self.name, self.settings = name, settings
        self._epoch = _shared_number()
        self._opened: tuple[int, _Stream] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Draw masks anew where a photo has more than are asked for, also in workers that are there already."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def order(self) -> Order:
        """The order in which training takes the items."""
        return self._stream().order

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.load(index % len(self), int(self._epoch))

    def load(self, index: int, epoch: int) -> Item:
        """Load an item with the masks that an epoch draws. Raises ``SumError`` if something cannot be read."""
        loaded = self._stream().load(index, SampleId(self.name, epoch, index))
        sample = loaded.on(torch.device("cpu"))
        rows, columns = sample.image.shape[1:]
        masks = sample.masks[:, :rows, :columns]
        certainty = torch.ones(masks.shape) if sample.certainty is None else sample.certainty[:, :rows, :columns]
        return Item(key=sample.key, task=TASKS[sample.task], image=sample.image, masks=masks, certainty=certainty)

    def _stream(self) -> _Stream:
        """Return the stream, opened by this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def _open(self) -> _Stream:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class ShardDataset(PhotosWithMasks):
    """The photos of a shard set or selection that have masks, with the labels and how certain they are.

    Labels are on the pixels of SAM's input: sizes are those of the SAM that labelled. ``uncertainty`` names the layer
    of maps, by default "refinement" if there is one; masks whose doubt is not known are left out then. None asks for no
    maps. At most ``masks`` of a photo are taken, drawn by ``seed``, photo and epoch. ``cache`` keeps copies of remote
    shards, ``photos_from`` says where photos lie now that have moved. Raises ``SumError`` as training does when it
    opens shards.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        uncertainty: str | None = "auto",
        masks: int = 30,
        seed: int = 0,
        cache: Cache | None = None,
        photos_from: Relocation = UNMOVED,
    ) -> None:
        self.url, self.cache, self.photos_from = str(url), cache, photos_from
        shards = open_shards(self.url, cache, photos_from)
        if uncertainty == "auto":
            uncertainty = REFINEMENT if REFINEMENT in shards.uncertainty_layers else None
        self.uncertainty, source = uncertainty, ""
        if uncertainty is not None:
            source = str(shards.layer(uncertainty_layer(uncertainty)).settings.get("source", uncertainty))
        self.method = Method(loss_by_certainty=uncertainty is not None, source=source.removeprefix("label-"))
        super().__init__("pseudo", SampleSettings(shards.input_side, 1, masks, seed))

    def _open(self) -> PseudoStream:
        shards = open_shards(self.url, self.cache, self.photos_from)
        return PseudoStream(PseudoSet(shards, self.uncertainty, self.method, self.settings))


class HumanDataset(PhotosWithMasks):
    """The photos of one or more sets of human masks, whose certainty is 1.

    ``sets`` are settings of sets, also as mappings, such as ``{"kind": "folder-pairs", "images": "photos", "masks":
    "masks", "task": "salient"}``. ``side`` is that of SAM's input, 1024 for the published models and 256 for
    ``vit_micro``. At most ``masks`` of a photo are taken, drawn by ``seed``, photo and epoch. Raises ``SumError`` for
    sets that cannot be used.
    """

    def __init__(
        self,
        *sets: SetSettings | Mapping[str, Any],
        side: int = 1024,
        masks: int = 30,
        seed: int = 0,
    ) -> None:
        named = [_with_name(each, number) for number, each in enumerate(sets)]
        self.sets: Sequence[SetSettings] = check_settings({"sets": named}, Suite, "sets").sets
        super().__init__("human", SampleSettings(side, 1, masks, seed))
        len(self)  # the sets are checked now

    def _open(self) -> HumanStream:
        opened: list[HumanSet] = [open_set(each) for each in self.sets]
        return HumanStream(opened, self.settings)


def _with_name(settings: SetSettings | Mapping[str, Any], number: int) -> SetSettings | Mapping[str, Any]:
    """Return settings as they are, but for a name where a mapping has none: only reports need one."""
    if isinstance(settings, Mapping) and not settings.get("name"):
        return {**settings, "name": f"set {number}"}
    return settings


class ShuffledDataset(IterableDataset[Item]):
    """The items of a dataset in the order of an epoch, shared among the ranks of a training and the workers of each.

    The order follows from ``seed`` and the epoch (``set_epoch``): units of a shard set are shuffled, then the photos
    within windows of eight units, so that few files are open at a time. Every item comes once. ``rank`` and ``ranks``
    are by default those of ``torch.distributed``, or of ``torchrun``. With ``even``, each rank gets as many items as
    any other: an epoch leaves out the last ones, fewer than there are ranks, which are others in each epoch.
    """

    def __init__(
        self,
        items: PhotosWithMasks,
        seed: int = 0,
        rank: int | None = None,
        ranks: int | None = None,
        even: bool = True,
    ) -> None:
        found = _own_rank()
        self.items, self.seed, self.even = items, seed, even
        self.rank, self.ranks = (found[0] if rank is None else rank), (found[1] if ranks is None else ranks)
        if not 0 <= self.rank < self.ranks:
            raise SettingsError(f"rank {self.rank} of {self.ranks}: expected 0 to {self.ranks - 1}")
        self._epoch = _shared_number()

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration be of this epoch, also in workers that are there already."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._positions())

    def __iter__(self) -> Iterator[Item]:
        worker, epoch = get_worker_info(), int(self._epoch)
        own = self._positions()
        if worker is not None:
            own = own[worker.id :: worker.num_workers]
        order = self.items.order
        order = Order(order.identity, order.groups, self.seed)
        for position in own:
            _, index = order.sample(epoch * len(order) + position)
            yield self.items.load(index, epoch)

    def _positions(self) -> range:
        """Return the positions in an epoch that are this rank's."""
        count = len(self.items)
        return range(count - count % self.ranks if self.even else count)[self.rank :: self.ranks]


def _shared_number() -> Tensor:
    """Return a number that is 0, and the same in all workers that a dataset is copied to."""
    number: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    return number


def _own_rank() -> tuple[int, int]:
    """Return the rank of this process and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
