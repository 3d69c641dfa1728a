"""The mask-refinement module: a copy of SAM's prompt encoder and mask decoder (SUM, Sec. 3.2.3, App. D).

It sees the embedding that SAM's frozen image encoder made, and as prompts a mask's low-resolution logits, its box and
its point, all three. Its file is safetensors and holds the two modules alone; the header says which SAM they belong to.
One for the packaged SAM ships beside it, under the same name.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import HEADER, LoadedSam, file_sha256, to_safetensors
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.sam.upstream import MaskDecoder, PromptEncoder, Sam
from sum_factory.shared.store.storage import Storage

KIND = "refiner"
PACKAGED_FILE = f"{PACKAGED}_refiner.safetensors"


class Refiner(nn.Module):
    """Turns SAM's logits into refined logits. ``sha256`` is that of the file it came from, empty for a new one."""

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, sha256: str = "") -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.sha256 = sha256

    @classmethod
    def copy_of(cls, sam: Sam) -> Refiner:
        """Return a refiner that starts from SAM's own prompt encoder and mask decoder, as copies."""
        return cls(copy.deepcopy(sam.prompt_encoder), copy.deepcopy(sam.mask_decoder))

    def refine(
        self, embeddings_BCHW: Tensor, image_index_P: Tensor, points_P2: Tensor, boxes_P4: Tensor, logits_PHW: Tensor
    ) -> Tensor:
        """Refine P masks: returns r, the logits of the single-mask output, float (P, h, w).

        ``points_P2`` (x, y) and ``boxes_P4`` (x0, y0, x1, y1) are in pixels of the square input, ``logits_PHW`` are s.
        """
        corners = boxes_P4.view(-1, 2, 2)
        token_types = torch.tensor([[POSITIVE, BOX_MIN, BOX_MAX]], device=corners.device).expand(len(corners), -1)
        coords = torch.cat([points_P2[:, None], corners], 1)
        prompts = Prompts(coords, token_types, logits_PHW[:, None])
        logits, _ = decode_prompts(self, embeddings_BCHW, image_index_P, prompts)
        return logits[:, 0]


def save_refiner(path: Path, refiner: Refiner, sam: LoadedSam, provenance: Mapping[str, Any]) -> None:
    """Write a refiner of ``sam``, whole or not at all. Raises ``StorageError``."""
    header = {**provenance, "kind": KIND, "sam": sam.identity}
    Storage(str(path.parent)).write(path.name, to_safetensors(refiner.state_dict(), header))


def identify_refiner(weights: str | Path, sam: Mapping[str, Any], known_as: Collection[str] = ()) -> dict[str, Any]:
    """Return what a shard set records of a refiner, its SHA-256, without building it.

    ``sam`` is what ``identify_weights`` says of the SAM whose masks it is to refine, ``known_as`` other digests of the
    same weights, such as earlier versions recorded. Raises as ``load_refiner``.
    """
    with _located(weights) as path:
        _require_of_sam(path, _read_header(path), sam, known_as)
        return {"sha256": file_sha256(path)}


def load_refiner(weights: str | Path, sam: LoadedSam) -> Refiner:
    """Load the refiner of ``sam``, in eval mode on the CPU, in fp32.

    ``weights`` is the path of a file that ``trainer refiner`` wrote, or "vit_micro" for the one that ships here.
    Raises ``CheckpointError`` if it is missing, damaged, no refiner, or was trained for other weights than ``sam``'s or
    for another task: embeddings of another encoder mean nothing to it.
    """
    with _located(weights) as path:
        _require_of_sam(path, _read_header(path), sam.identity, (sam.file_sha256,))
        refiner = Refiner.copy_of(sam.sam)
        try:
            refiner.load_state_dict(load_file(path))
        except (SafetensorError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(
                f"{path}: damaged, or not the weights of a refiner ({reason}); train it again"
            ) from error
        refiner.sha256 = file_sha256(path)
        return refiner.eval()


@contextmanager
def _located(weights: str | Path) -> Iterator[Path]:
    """Give the path of the file that ``weights`` names."""
    if str(weights) == PACKAGED:
        with as_file(files("sum_factory.shared.sam") / "weights" / PACKAGED_FILE) as path:
            yield path
    else:
        yield Path(weights)


def _require_of_sam(path: Path, header: Mapping[str, Any], sam: Mapping[str, Any], known_as: Collection[str]) -> None:
    """Raise ``CheckpointError`` if a refiner was trained for another SAM, or for another task of it."""
    trained_for = header["sam"]
    if trained_for["sha256"] not in {sam["sha256"], *known_as}:
        raise CheckpointError(
            f"{path}: this refiner was trained for a {trained_for['model_type']} with SHA-256 "
            f"{trained_for['sha256'][:12]}, not for the {sam['model_type']} with {sam['sha256'][:12]} that is given "
            "here; give the SAM that it was trained for, or train another with `trainer refiner`"
        )
    if trained_for.get("task") != sam.get("task"):
        raise CheckpointError(
            f"{path}: this refiner was trained for masks of the task {trained_for.get('task', '(none)')}, and these "
            f"are of {sam.get('task', '(none)')}; give the same --task to `trainer refiner` and `labelgen run`"
        )


def _read_header(path: Path) -> dict[str, Any]:
    """Return how a refiner was made. Raises ``CheckpointError`` if the file is missing, damaged or no refiner."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a refiner, as `trainer refiner` writes it")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({error}); train it again") from error
    if not isinstance(header, dict) or header.get("kind") != KIND or "sam" not in header:
        raise CheckpointError(f"{path}: these are no weights of a refiner; make one with `trainer refiner`")
    return header
