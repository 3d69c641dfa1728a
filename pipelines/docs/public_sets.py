"""The page of public sets: what each is, where to get it, and what to unpack where, as the declarations have it."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from sum_factory.trainer.data.public import PublicSet, public_sets
from sum_factory.trainer.data.public.declarations import Fact
from sum_factory.trainer.data.public.help import table_of_sets, told

WORDS = """# Public sets

A recipe or suite names a public set by `set`, and says by `root` where it lies. Which files of it are read, and how,
is known, for each of the layouts that are about; the first that is there is read. The set is looked for at the root,
and up to two folders below.

    - {set: hrsod, root: /data}
    - {set: easyportrait-val, root: /data, limit: 1000}

`trainer data list` prints the table, `trainer data fetch-help SET` one of the sections, and
`trainer data check SET --root FOLDER` compares what is there with what is published. What is marked as not checked was
written from memory: a count of this kind is compared, but a difference is no error.

None of the sets is downloaded or distributed here. Each has a licence of its own.
"""
FACTS: tuple[tuple[Fact, str], ...] = (("photos", "photos"), ("masks", "masks"))


def public_sets_page() -> str:
    """Return the page in Markdown."""
    headings, *rows = table_of_sets()
    lines = [WORDS, f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    lines += [f"| [`{name}`](#{name}) | {' | '.join(cells)} |" for name, *cells in rows]
    return "\n".join([*lines, "", *(line for public in public_sets().values() for line in _section(public))])


def _section(public: PublicSet) -> Iterator[str]:
    yield f"## {public.name}\n"
    yield f"{public.title}, {public.split}; the task is {public.task}.\n"
    for fact, what in FACTS:
        number = public.photos if fact == "photos" else public.masks
        if number is not None:
            yield f"- {told(public, fact, f'{number:,} {what}')}"
    yield f"- From: {told(public, 'source', public.source)}"
    yield f"- Licence: {told(public, 'licence', public.licence)}"
    yield from (f"- {note}" for note in public.notes)
    yield "\nUnpacked:\n"
    yield from (f"    {line}" for line in public.unpack.splitlines())
    yield f"\nHow it is read{', which was not checked in all' if 'values' in public.not_checked else ''}:\n"
    for layout in public.layouts:
        text = yaml.safe_dump(dict(layout), sort_keys=False, width=10_000, allow_unicode=True)
        yield "\n".join(["```yaml", text + "```"])
    yield ""
