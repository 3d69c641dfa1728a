"""Weights of HQ-SAM: a frozen SAM with a mask decoder that got more tensors, which are left out here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

OWN = re.compile(
    r"mask_decoder\.(?:"
    r"hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature"  # as HQ-SAM publishes them
    r"|task_prompt_embeddings|task_prompt_tokens|hf_type_tokens"  # as SUM's authors train them
    r"|hq_token|hq_mask_mlp|(?:compress_vit|encoder|mask)_(?:conv1|norm|conv2)"  # as Hugging Face calls them
    r")\..+"
)
"""Tensors that HQ-SAM has and SAM has not."""


def sam_part(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of SAM itself, and what to tell people if any were left out."""
    own = [name for name in state if OWN.fullmatch(name)]
    note = (
        f"weights of HQ-SAM: the SAM in it is used, which its training leaves as it was; its {len(own)} tensors for "
        "high-quality masks are left out"
    )
    return {name: value for name, value in state.items() if name not in own}, note if own else None
