"""HQ-SAM: an output token, its MLP and fused features of fine structures are trained, on a frozen SAM.

Its file of weights, exported, has the names that HQ-SAM publishes: those of SAM, and these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import LoadedSam, SamWeights, digest_of, identify, load_sam
from sum_factory.shared.sam.forms.convert import to_official
from sum_factory.shared.sam.forms.names import find_model, flatten, plain
from sum_factory.shared.sam.forms.reading import read_content
from sum_factory.shared.sam.hq import OWN, HqMaskDecoder, add_hq
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.run.settings import NoSettings
from sum_factory.trainer.variants.variant import Variant


def _prepare(sam: Sam, settings: NoSettings) -> None:
    add_hq(sam)
    sam.requires_grad_(False)
    decoder = sam.mask_decoder
    assert isinstance(decoder, HqMaskDecoder), "it was made one"
    for parameter in decoder.own():
        parameter.requires_grad_(True)


VARIANT = Variant(
    "hq",
    "the token, the MLP and the fused features of HQ-SAM",
    _prepare,
    public_form="HQ-SAM's own layout, which `segment_anything_hq` loads",
)


DECODER = "mask_decoder."


def is_own(name: str) -> bool:
    """Whether a tensor of that name is one of those that HQ-SAM adds to SAM."""
    return name.removeprefix(DECODER).startswith(tuple(f"{module}." for module in OWN))


def is_public(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of a file of HQ-SAM's, of all or of the decoder; whatever their prefix.

    Files of others with more tensors than HQ-SAM has are not.
    """
    own = [name for name in names if is_own(name.rpartition(DECODER)[2])]
    return bool(own) and not any("task_prompt" in name or "hf_type" in name for name in names)


def load_public(path: Path, sam: str | None = None) -> LoadedSam:
    """Load HQ-SAM from a file in its public layout: all of it, or the decoder alone, as its training writes it.

    A decoder needs ``sam``, the SAM that it sits on. Raises ``CheckpointError`` if that is missing or another one, or
    if names or shapes do not fit.
    """
    read, where = read_content(path), str(path)
    tensors = flatten(read.content)
    whole = find_model(tensors, where)
    if whole is None:
        if sam is None:
            raise CheckpointError(f"{path}: the decoder of HQ-SAM alone; give the SAM that it sits on as --sam")
        loaded = load_sam(sam)
        state = {plain(key).removeprefix(DECODER): value for key, value in tensors.items()}
        _require_same(state, loaded, path, sam)
    else:
        if sam is not None:
            raise CheckpointError(f"{path}: sits on no other SAM; leave --sam out")
        below = to_official(replace(read, content={k: v for k, v in whole.items() if not is_own(k)}), where)
        architecture = identify({name: tuple(value.shape) for name, value in below.state.items()}, where)
        loaded = load_sam(SamWeights(path, below.state, architecture, ""))
        state = {name.removeprefix(DECODER): value for name, value in whole.items() if name.startswith(DECODER)}
    add_hq(loaded.sam)
    try:
        loaded.sam.mask_decoder.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CheckpointError(f"{path}: this HQ-SAM does not fit {loaded.architecture.name}: {reason}") from error
    return replace(loaded, sha256=digest_of(loaded.sam.state_dict()), file_sha256=read.sha256)


def _require_same(state: Mapping[str, Tensor], loaded: LoadedSam, path: Path, sam: str) -> None:
    """Raise ``CheckpointError`` if a decoder's own copy of SAM's, which HQ-SAM leaves as it was, is not that of the
    SAM that is given: the image encoder would be another, too."""
    for name, value in loaded.sam.mask_decoder.state_dict().items():
        copy = state.get(name)
        same_shape = copy is not None and copy.shape == value.shape
        if copy is not None and same_shape and not torch.allclose(copy.float(), value, rtol=2e-3, atol=1e-4):
            raise CheckpointError(f"{path}: sits on another SAM than {sam}: {name} differs; give that one as --sam")
