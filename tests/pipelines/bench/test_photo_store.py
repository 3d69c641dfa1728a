"""The store that the benchmark of plans lists is one to the listing, too."""

from __future__ import annotations

from sum_factory.labelgen.listing import list_photos
from sum_factory.pipelines.bench.parts.photo_store import open_store, photos_of
from sum_factory.shared.photo_files import read_listed


def test_photos_of_the_store_are_listed_and_read_as_they_are() -> None:
    listed = list(list_photos([open_store(1_003, 200)]))
    assert [(photo.key, read_listed(photo)) for photo in listed] == list(photos_of(1_003, 200))
