"""How often this process has read weights, for who only wants to tell of it: without torch, which loads in seconds."""

from __future__ import annotations


class Readings:
    """Counts how often this process has read a file of weights, and how many bytes that were."""

    def __init__(self) -> None:
        self.times = self.bytes = 0

    def since(self, times: int = 0, size: int = 0) -> tuple[int, int]:
        """Return both, beyond what was counted before."""
        return self.times - times, self.bytes - size


READINGS = Readings()
