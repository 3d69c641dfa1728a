"""The labels of a photo to blobs, in processes of their own where a GPU finds masks faster than a thread encodes.

Encoding is many small steps of NumPy, which hold Python's lock: threads do not make it faster, and keep the thread
waiting that feeds the GPU.
"""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from sum_factory.labelgen.kept import logits_of_labels
from sum_factory.shared.automask.automask import GeneratedMasks
from sum_factory.shared.codecs.label import encode_labels
from sum_factory.shared.parent_process import end_with_parent
from sum_factory.shared.progress import SPEAKER

MOST_PROCESSES = 8
FALLEN_BACK = (
    "processes that encode labels ended; threads go on, which may keep the GPU waiting (a script that labels on a GPU "
    "needs its main code under `if __name__ == '__main__':`)"
)


class LabelCoder:
    """Encodes labels in ``processes``, or in the thread that asks where there are none, or none any more."""

    def __init__(self, processes: int = 0) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            self._pool = ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent)

    def encode(self, generated: GeneratedMasks) -> list[bytes]:
        """Return the blob of each mask in the layer of masks."""
        cut = logits_of_labels(generated)
        if self._pool is not None:
            try:
                future: Future[list[bytes]] = self._pool.submit(encode_labels, cut)
                return future.result()
            except BrokenProcessPool:
                if self._pool is not None:
                    self._pool = None
                    SPEAKER.say(FALLEN_BACK)
        return encode_labels(cut)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def coding_processes(on_gpu: bool, cores: int) -> int:
    """Return how many processes encode: none where lanes on a CPU have all cores, else all but two, as far as it helps.

    The two are for the thread that feeds the GPU, and for decoding photos.
    """
    return max(0, min(MOST_PROCESSES, cores - 2)) if on_gpu else 0
