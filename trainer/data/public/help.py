"""What is told of public sets: a table of all, and where to get one and what to unpack where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sum_factory.trainer.data.public.declarations import Fact, PublicSet, public_sets

COLUMNS = ("set", "task", "photos", "split", "reader", "licence")
UNCHECKED = "(not checked)"


def table_of_sets() -> list[tuple[str, ...]]:
    """Return a row for each public set, below one of headings."""
    return [COLUMNS, *(_row(each) for each in public_sets().values())]


def _row(public: PublicSet) -> tuple[str, ...]:
    photos = "not known" if public.photos is None else told(public, "photos", f"{public.photos:,}")
    licence = told(public, "licence", public.licence)
    return public.name, public.task, photos, public.split, " or ".join(public.readers), licence


def told(public: PublicSet, fact: Fact, text: str) -> str:
    """Return what is known of a set, marked if nobody has checked it."""
    return f"{text} {UNCHECKED}" if fact in public.not_checked else text


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def help_of(sets: Iterable[PublicSet], root: str) -> list[str]:
    """Return in lines where to get sets, and what to unpack where below ``root``; what comes together is told once."""
    groups: dict[tuple[str, str], list[PublicSet]] = {}
    for public in sets:
        groups.setdefault((public.source, public.unpack), []).append(public)
    return [line for group in groups.values() for line in (*_help_of_group(group, root), "")][:-1]


def _help_of_group(group: Sequence[PublicSet], root: str) -> list[str]:
    first = group[0]
    lines = [
        ", ".join(each.title for each in group),
        f"  from: {told(first, 'source', first.source)}",
        f"  licence: {'; '.join(dict.fromkeys(told(each, 'licence', each.licence) for each in group))}",
        f"  unpack to: {told(first, 'unpack', root)}",
        *(f"      {line}" for line in first.unpack.splitlines()),
    ]
    for each in group:
        counts = [f"{number:,} {what}" for what, number in (("photos", each.photos), ("masks", each.masks)) if number]
        published = f"; {told(each, 'photos', ' and '.join(counts))}" if counts else ""
        lines.append(f"  {each.name}: {each.split}{published}")
        if "values" in each.not_checked:
            lines.append(f"      what its values mean: {UNCHECKED[1:-1]}; look at the contact sheet")
    lines += [f"  note: {note}" for note in dict.fromkeys(note for each in group for note in each.notes)]
    return [*lines, *(f"  then: trainer data check {each.name} --root {root}" for each in group)]
