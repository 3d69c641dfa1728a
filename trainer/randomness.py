"""Random numbers that depend on what they are for, not on who draws them or when.

Every sample has its own generator, seeded by a hash of (seed, epoch, sample): a run that is resumed, or split otherwise
over micro-batches or processes, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """Return a seed, 0 to 2**63 - 1, that is a hash of ``parts``."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_of(*parts: int | str) -> torch.Generator:
    """Return a generator on the CPU seeded by a hash of ``parts``."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class RowGenerators:
    """The generators of several samples, each with the number of rows (masks) that are its own."""

    generators: Sequence[torch.Generator]
    counts: Sequence[int]

    def uniform(self, rows: int, columns: int) -> Tensor:
        """Return numbers in [0, 1), float64 (rows, columns); ``rows`` must be the sum of the counts."""
        self._require(rows)
        drawn = [
            torch.rand(count, columns, generator=generator, dtype=torch.float64)
            for generator, count in zip(self.generators, self.counts, strict=True)
        ]
        return torch.cat(drawn)

    def normal(self, rows: int, columns: int) -> Tensor:
        """Return standard normal numbers, float32 (rows, columns); ``rows`` must be the sum of the counts."""
        self._require(rows)
        drawn = [
            torch.randn(count, columns, generator=generator)
            for generator, count in zip(self.generators, self.counts, strict=True)
        ]
        return torch.cat(drawn)

    @classmethod
    def of(cls, generator: torch.Generator, rows: int) -> RowGenerators:
        """Return one generator for all rows."""
        return cls([generator], [rows])

    def _require(self, rows: int) -> None:
        if rows != sum(self.counts):
            raise ValueError(f"generators of {sum(self.counts)} rows were asked for {rows}")


Randomness = torch.Generator | RowGenerators
"""One generator for all rows, or one for the rows of each sample."""


def by_row(generator: Randomness, rows: int) -> RowGenerators:
    """Return the generators of ``rows`` rows: one for all of them, if there is one."""
    return RowGenerators.of(generator, rows) if isinstance(generator, torch.Generator) else generator
