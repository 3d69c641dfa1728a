"""Open weights of whatever kind: plain SAM, SUM, what a variant trained, or HQ-SAM's public files."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import safe_open

from sum_factory.shared.errors import CheckpointError, SettingsError
from sum_factory.shared.sam.checkpoint import TRAINED_WEIGHTS, LoadedSam, load_sam
from sum_factory.shared.sam.forms.names import flatten, plain
from sum_factory.shared.sam.forms.reading import is_safetensors, read_header
from sum_factory.shared.sam.hq import HqMaskDecoder, HqOutput
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_FILE
from sum_factory.trainer.variants.hq import is_public, load_public
from sum_factory.trainer.variants.trained_weights import load_trained


def load_any(weights: str, sam: str | None = None, for_others: bool = False, hq_output: HqOutput = "hq") -> LoadedSam:
    """Load weights in any form that ``load_sam`` takes, what a variant trained, or HQ-SAM's public files.

    ``sam`` is the SAM that the weights of a variant, or a decoder of HQ-SAM, sit on; for a variant by default where it
    lay in training. ``hq_output`` is what HQ-SAM puts out. Raises ``CheckpointError``; if the model is ``for_others``,
    also for a variant that no other software can read; and ``SettingsError`` for an output that weights do not have.
    """
    path = _file_of(weights)
    if path is not None and read_header(path).get("kind") == TRAINED_WEIGHTS:
        loaded = load_trained(path, sam, for_others)
    elif path is not None and is_public(_names_in(path)):
        loaded = load_public(path, sam)
    elif sam is not None:
        raise CheckpointError(f"{weights}: sits on no other SAM; leave --sam out")
    else:
        loaded = load_sam(weights)
    if isinstance(loaded.sam.mask_decoder, HqMaskDecoder):
        loaded.sam.mask_decoder.hq_output = hq_output
    elif hq_output != "hq":
        raise SettingsError(f"{weights}: no HQ-SAM, which alone has an output {hq_output}; leave --hq-output out")
    return loaded


def require_no_hq(weights: str) -> None:
    """Raise ``CheckpointError`` if ``weights`` are HQ-SAM's, which training would drop the own tensors of."""
    path = _file_of(weights)
    if path is not None and is_public(_names_in(path)):
        raise CheckpointError(
            f"{weights}: HQ-SAM's, and training starts from a SAM: its own tensors would be left out. Give the SAM "
            "that it sits on, whose weights it holds unchanged"
        )


def _file_of(weights: str) -> Path | None:
    """Return the one file that ``weights`` name: itself, or that of the folder of a run; None for anything else."""
    path = Path(weights)
    if weights != PACKAGED and path.is_dir():
        path = path / WEIGHTS_FILE
    return path if weights != PACKAGED and path.is_file() else None


def _names_in(path: Path) -> frozenset[str]:
    """Return the names of the tensors in a file, without reading them; none if they cannot be told so."""
    try:
        with path.open("rb") as file:
            if is_safetensors(file.read(9)):
                with safe_open(path, "pt") as opened:
                    return frozenset(opened.keys())
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError):
        return frozenset()  # who reads all of it says what is wrong
    return frozenset(map(plain, flatten(content)))
