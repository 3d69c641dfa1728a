"""Pairs of photos and mask files that were checked against each other by their headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sum_factory.trainer.data.human.choice import Choice, require_some
from sum_factory.trainer.data.human.fitting import Fit, Orientation, ToFit, fit_all
from sum_factory.trainer.data.human.headers import Header, read_headers
from sum_factory.trainer.data.human.pairing import Names, Pair, pair_files
from sum_factory.trainer.data.human.problems import Problems, Skip


@dataclass(frozen=True, slots=True)
class PairedFile:
    """A pair whose headers can be read and whose sizes fit; ``masks`` are the headers of its mask files."""

    pair: Pair
    header: Header
    masks: tuple[Header, ...]
    fit: Fit


@dataclass(frozen=True)
class Paired:
    """All such pairs of a set, sorted by key, and what to say of them."""

    files: list[PairedFile]
    said: list[str]


def open_pairs(images: Path, masks: Path, names: Names, choice: Choice, orientation: Orientation, skip: Skip) -> Paired:
    """Find the pairs of a set and read their headers. Raises ``InputError`` for what cannot be used."""
    pairs, said = pair_files(images, masks, names, choice, skip)
    paths = list(dict.fromkeys(path for pair in pairs for path in (pair.photo, *pair.masks)))
    headers = dict(zip(paths, read_headers(paths), strict=True))
    problems = Problems(str(masks), "pairs", skip)
    readable: list[tuple[Pair, Header, tuple[Header, ...]]] = []
    cases: list[ToFit] = []
    for pair in pairs:
        found = [headers[path] for path in (pair.photo, *pair.masks)]
        wrong = next((each for each in found if isinstance(each, str)), None)
        photo, *others = (each for each in found if isinstance(each, Header))
        if wrong is not None:
            problems.add("cannot be read", wrong)
        elif len({other.upright for other in others}) > 1:
            problems.add("have masks of several sizes", str(pair.photo))
        else:
            readable.append((pair, photo, tuple(others)))
            cases.append(ToFit(photo, others[0].upright, str(pair.photo), str(pair.masks[0])))
    fits, fitted = fit_all(cases, orientation, problems)
    files = [PairedFile(*each, fit) for each, fit in zip(readable, fits, strict=True) if fit is not None]
    said += [*problems.settle(len(pairs)), *fitted]
    require_some((paired.pair.key for paired in files), str(images))
    return Paired(files, said)
