"""Weights that are not SAM's, by name: what they are told by, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable

STRANGERS = (
    ("SAM 3", r"geometry_encoder|language_backbone|dot_prod_scoring|dot_product_scoring|vision_backbone|detr_encoder"),
    (
        "SAM 2",
        r"sam_mask_decoder|sam_prompt_encoder|memory_attention|memory_encoder|maskmem_tpos_enc|obj_ptr_proj"
        r"|no_memory_embedding|memory_temporal_positional_encoding|object_pointer_proj|image_encoder\.trunk"
        r"|vision_encoder\.backbone",
    ),
    ("MobileSAM", r"image_encoder\.patch_embed\.seq|image_encoder\.layers\.\d+\.(?:blocks|downsample)"),
    ("EfficientSAM", r"prompt_encoder\.(?:invalid_points|bbox_top_left_embeddings)"),
    ("EfficientViT-SAM", r"image_encoder\.backbone"),
)
"""Models that are built otherwise, and parts of names that they alone have."""
ADAPTED = r"\w*lora\w*|[wl]_[ab]_\d+|linear_[ab]_[qv]|\w*[Aa]dapter\w*|prompt_generator"
"""Parts of names of what is added to a model to train it cheaply."""


def why_refused(names: Iterable[str]) -> str | None:
    """Return why weights with these names are refused, or None if nothing is known against them."""
    names = list(names)
    for model, marks in STRANGERS:
        found = _first(names, marks)
        if found is not None:
            return (
                f"weights of {model}, told by {found}; this software runs the first Segment Anything Model: give "
                "weights of its ViT-B, ViT-L or ViT-H"
            )
    adapted = _first(names, ADAPTED)
    if adapted is not None:
        return (
            f"weights with adapters, such as {adapted}, which this software does not run; merge them into SAM's own "
            "weights with the software that trained them"
        )
    return None


def why_incomplete(names: Iterable[str]) -> str:
    """Return why weights in which no SAM was found cannot be used, going by what parts of one they have."""
    names = list(names)
    decoder, encoder = _first(names, r"iou_token|mask_tokens"), _first(names, r"image_encoder|vision_encoder")
    whole = "give the weights of a whole SAM: image encoder, prompt encoder and mask decoder"
    if decoder is not None and encoder is None:
        return f"a mask decoder alone, told by {decoder}, without the image encoder that it belongs to; {whole}"
    if encoder is not None and decoder is None:
        return f"an image encoder alone, told by {encoder}; {whole}"
    shown = f"{len(names)} tensors, such as {names[0]}" if names else "no tensors"
    return f"no weights of a Segment Anything Model, but {shown}; {whole}"


def _first(names: Iterable[str], marks: str) -> str | None:
    """Return the first name with one of the ``marks``, as whole parts of it."""
    pattern = re.compile(rf"(?:^|\.)(?:{marks})(?:\.|$)")
    return next((name for name in names if pattern.search(name)), None)
