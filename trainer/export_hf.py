"""Write a model as a folder of the Hugging Face libraries, for ``SamModel``, and compare both before it counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sum_factory.shared.errors import CheckpointError, InputError
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.architecture import PATCH, SamArchitecture
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, NEGATIVE, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.forms.hugging_face import official_name
from sum_factory.shared.sam.hq import HqMaskDecoder, embed
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.upstream import Sam
from sum_factory.shared.store.local_files import whole_folder
from sum_factory.trainer.export import for_task
from sum_factory.trainer.model_card import model_card
from sum_factory.trainer.variants.load import load_any

if TYPE_CHECKING:
    from transformers import SamConfig, SamModel

WEIGHTS, CARD = "model.safetensors", "README.md"
NORM_EPSILON = 1e-5
"""What SAM's decoder normalises with. ``SamModel`` has 1e-6 unless its settings say this."""
TOLERANCE = 1e-3
"""How far an output may be from ours, as a share of our largest absolute value."""
USE = """    from transformers import SamModel, SamProcessor

    model, processor = SamModel.from_pretrained("FOLDER"), SamProcessor.from_pretrained("FOLDER")"""
FRONT = "library_name: transformers\npipeline_tag: mask-generation\n"
TIED = "prompt_encoder.shared_embedding.positional_embedding"
"""What ``SamModel`` has under another name, too, and takes from there."""


def export_hf(weights: str, out: Path, task: str = TASKS[0], sam: str | None = None) -> float:
    """Write weights into the folder ``out``: ``config.json``, ``model.safetensors``, the settings of the processor, and
    a card. The vector of ``task`` is folded in as in ``export_plain_sam``.

    What was written is loaded by ``SamModel`` and compared with the model here, on a random photo and random prompts.
    Returns the largest difference of any output, as a share of the largest value. Raises ``CheckpointError`` for models
    that ``SamModel`` cannot be, ``InputError`` if outputs differ, ``StorageError``, and as ``export_plain_sam``.
    """
    loaded = load_any(weights, sam, for_others=True)
    _require_expressible(loaded, weights)
    loaded.sam.load_state_dict(for_task(loaded, weights, task).state)
    with whole_folder(out) as folder, _quiet():
        config = config_of(loaded.architecture)
        with Stage(f"writing {out}"):
            _write(loaded, config, folder)
            (folder / CARD).write_text(model_card(loaded, weights, task, USE, FRONT))
        with Stage(f"comparing {out} with the model here"):
            return _difference(loaded.sam, folder)


def _require_expressible(loaded: LoadedSam, weights: str) -> None:
    if isinstance(loaded.sam.mask_decoder, HqMaskDecoder):
        raise CheckpointError(f"{weights}: an HQ-SAM, which SamModel is not; give --format sam, or onnx")
    if loaded.architecture.stem_channels:
        raise CheckpointError(
            f"{weights}: a {loaded.architecture.name}, whose image encoder begins with convolutions that SamModel does "
            "not have; give --format onnx, sam or safetensors"
        )


def config_of(architecture: SamArchitecture) -> SamConfig:
    """Return the settings of a ``SamModel`` of this architecture."""
    from transformers import SamConfig

    side, width = architecture.image_size, architecture.prompt_dim
    vision = {
        "hidden_size": architecture.encoder_dim,
        "output_channels": width,
        "num_hidden_layers": architecture.encoder_depth,
        "num_attention_heads": architecture.encoder_heads,
        "image_size": side,
        "patch_size": PATCH,
        "window_size": architecture.window_size,
        "global_attn_indexes": list(architecture.global_attention_blocks),
        "num_pos_feats": width // 2,
        "mlp_dim": 4 * architecture.encoder_dim,
    }
    decoder = {"hidden_size": width, "mlp_dim": architecture.decoder_mlp_dim, "layer_norm_eps": NORM_EPSILON}
    prompts = {"hidden_size": width, "image_size": side, "patch_size": PATCH}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    config.architectures = ["SamModel"]
    return config


def _write(loaded: LoadedSam, config: SamConfig, folder: Path) -> None:
    """Write weights under the names of ``SamModel``, and the settings of model and processor."""
    from transformers import SamImageProcessor, SamModel, SamProcessor

    with torch.device("meta"):
        names = SamModel(config).state_dict().keys() - {TIED}
    state = loaded.sam.state_dict()
    ours = {name: official_name(name) for name in names}
    if sorted(ours.values()) != sorted(state):
        odd = sorted({*ours.values()} ^ {*state})
        raise InputError(f"SamModel of this version of transformers has other tensors than SAM: {', '.join(odd[:3])}")
    tensors = {name: state[official].contiguous().clone() for name, official in ours.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config.save_pretrained(folder)
    side, low = loaded.architecture.image_size, loaded.architecture.low_res_side
    processor = SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": low},
        mask_pad_size={"height": low, "width": low},
    )
    processor.save_pretrained(folder)
    SamProcessor(processor).save_pretrained(folder)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _difference(sam: Sam, folder: Path) -> float:
    """Return how far outputs of what was written are from ours. Raises ``InputError`` beyond the tolerance."""
    from transformers import SamModel

    theirs: SamModel = SamModel.from_pretrained(folder, local_files_only=True)  # in eval mode, as it comes
    generator, side = torch.Generator().manual_seed(0), int(sam.image_encoder.img_size)
    image = sam.preprocess(torch.rand(1, 3, side, side - PATCH, generator=generator) * 255)
    embedding = embed(sam, image)
    pairs = [(theirs.get_image_embeddings(pixel_values=image), embedding)]
    points = torch.rand(1, 2, 2, generator=generator) * side
    corners = torch.tensor([[0.2, 0.3], [0.7, 0.8]]) * side
    for several in (True, False):
        for prompts, given in _prompts(points, corners):
            logits, iou = decode_prompts(sam, embedding, torch.zeros(1, dtype=torch.long), prompts)
            which = slice(1, None) if several else slice(0, 1)
            found: Any = theirs(image_embeddings=embedding, multimask_output=several, **given)
            pairs += [(found.pred_masks[0], logits[:, which]), (found.iou_scores[0], iou[:, which])]
    difference = max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-6)) for one, other in pairs)
    if not difference <= TOLERANCE:
        raise InputError(
            f"{WEIGHTS}: outputs of SamModel differ from ours by {difference:.2g} of the largest value, more than "
            f"{TOLERANCE:g}; nothing is written. Another version of transformers may do"
        )
    return difference


def _prompts(points: Tensor, corners: Tensor) -> Iterator[tuple[Prompts, dict[str, Tensor]]]:
    """Yield prompts as they are here and as ``SamModel`` takes them: two points, and a box."""
    types = torch.tensor([[POSITIVE, NEGATIVE, PAD]])
    coords = torch.cat([points, torch.zeros(1, 1, 2)], 1)
    yield Prompts(coords, types), {"input_points": points[None], "input_labels": torch.tensor([[[1, 0]]])}
    yield Prompts(corners[None], torch.tensor([[BOX_MIN, BOX_MAX]])), {"input_boxes": corners.reshape(1, 1, 4)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Have transformers draw no progress and give no advice meanwhile."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
