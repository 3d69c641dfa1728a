"""Write a model as ONNX: the image encoder, and the decoder as upstream's ``SamOnnxModel``; run both before they count.

encoder.onnx    image (1, 3, h, w) -> image_embeddings (1, C, g, g); of HQ-SAM (1, 3 C, g, g), its features behind it
decoder.onnx    upstream's inputs and outputs by their names, here for one mask at a time, all outputs of SAM

``image`` is a photo as RGB, float32 0 to 255, scaled so that its longer side is SAM's: normalisation and padding are
in the graph.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from segment_anything.utils.onnx import SamOnnxModel
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.nn import functional as F

from sum_factory.shared.errors import InputError, StorageError
from sum_factory.shared.placement import Frame
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, NEGATIVE, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.hq import HqMaskDecoder, HqOutput, embed, hq_logits, split
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.upstream import Sam
from sum_factory.shared.store.local_files import TEMPORARY_PREFIX
from sum_factory.trainer.export import for_task
from sum_factory.trainer.model_card import model_card
from sum_factory.trainer.variants import sam_adapter
from sum_factory.trainer.variants.load import load_any

if TYPE_CHECKING:
    from collections.abc import Iterator

ENCODER, DECODER, CARD = "encoder.onnx", "decoder.onnx", "README.md"
INSTALL = "pip install 'sum-factory[onnx]'"
OPSET = 17
USE = f"`{ENCODER}` embeds a photo, `{DECODER}` makes masks of that and of prompts, as upstream's `SamOnnxModel`."
TOLERANCE = 1e-3
"""How far an output may be from torch's, as a share of torch's largest absolute value."""
INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
OUTPUTS = ("masks", "iou_predictions", "low_res_masks")
CHECKED_SIZES = ((75, 120), (64, 64), (301, 97))
"""Heights and widths of the photos that an export is checked with."""


class Encoder(nn.Module):
    """What ``SamPredictor.set_torch_image`` does: normalise, pad, encode."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, image: Tensor) -> Tensor:
        """Encode a scaled photo, float32 (1, 3, h, w)."""
        return embed(self.sam, self.sam.preprocess(image))


class Decoder(SamOnnxModel):  # type: ignore[misc]
    """Upstream's model, for photos of any size.

    Upstream's own, traced, keeps the size of the photo that it was traced with.
    """

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """Bring low-resolution logits (1, K, h, w) to a photo of ``orig_im_size`` (height, width), as SAM does."""
        side = int(self.img_size)
        masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        sizes = orig_im_size.to(torch.float64)
        scale = torch.true_divide(torch.tensor(float(side), dtype=torch.float64), sizes.max())
        inside = torch.floor(sizes * scale + 0.5).to(torch.int64)
        masks = masks[..., : inside[0], : inside[1]]
        height, width = orig_im_size.to(torch.int64).unbind()
        resized: Tensor = F.interpolate(
            masks,
            (height, width),  # type: ignore[arg-type]  # in a trace, sizes are tensors
            mode="bilinear",
            align_corners=False,
        )
        return resized


class HqDecoder(Decoder):
    """The same of HQ-SAM: one output, which ``hq_output`` of its decoder chooses."""

    @torch.no_grad()
    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode the prompt of one mask."""
        decoder = self.mask_decoder
        raw, features = split(decoder, image_embeddings)
        assert features is not None, "the decoder is HQ-SAM's"
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hf_token.weight])
        tokens = torch.cat([own[None], self._embed_points(point_coords, point_labels)], 1)
        prompted = raw + self._embed_masks(mask_input, has_mask_input)
        decoded, image = decoder.transformer(prompted, self.model.prompt_encoder.get_dense_pe(), tokens)
        upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(prompted.shape))
        weights = torch.stack([mlp(decoded[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
        sams = (weights @ upscaled.flatten(2)).reshape(1, -1, *upscaled.shape[2:])
        hq = hq_logits(decoder, decoded[:, len(own) - 1], upscaled, features)
        alone = (point_labels != PAD).sum(1) == 1
        padded = (point_labels == PAD).sum(1) == 1
        ambiguous = alone & padded & (has_mask_input == 0)
        iou = decoder.iou_prediction_head(decoded[:, 0])
        chosen = torch.where(ambiguous, 1 + iou[:, 1:].argmax(1), torch.zeros_like(ambiguous, dtype=torch.long))
        logits = hq + sams.index_select(1, chosen) if decoder.hq_output == "hq+sam" else hq
        return self.mask_postprocessing(logits, orig_im_size), iou.index_select(1, chosen), logits


@dataclass(frozen=True)
class Exported:
    """The files that were written, and the largest difference from torch of any output, as ``TOLERANCE`` is given."""

    files: tuple[Path, ...]
    difference: float


def export_onnx(
    weights: str, out: Path, task: str = TASKS[0], sam: str | None = None, hq_output: HqOutput = "hq"
) -> Exported:
    """Write ``encoder.onnx``, ``decoder.onnx`` and a card of any weights into the folder ``out``, for one task.

    The vector of ``task`` is folded into the decoder as in ``export_plain_sam``; updates of LoRA are merged. Both files
    are run by onnxruntime on random photos and prompts, and moved to ``out`` if their outputs are those of torch.
    Raises ``InputError`` if onnx or onnxruntime is not installed, or if outputs differ; ``StorageError``; and as
    ``export_plain_sam``, but any variant can be exported.
    """
    require_onnx()
    loaded = load_any(weights, sam, hq_output=hq_output)
    loaded.sam.load_state_dict(for_task(loaded, weights, task).state)
    loaded.sam.requires_grad_(False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out))
    except OSError as error:
        raise StorageError(f"cannot write into {out}: {error.strerror or error}; check the path") from error
    try:
        difference = _write_checked(loaded, aside)
        (aside / CARD).write_text(model_card(loaded, weights, task, USE))
        files = sorted(aside.iterdir())
        for path in files:
            path.rename(out / path.name)
    except OSError as error:
        raise StorageError(f"cannot write into {out}: {error.strerror or error}; check the free space") from error
    finally:
        shutil.rmtree(aside)
        if not any(out.iterdir()):
            out.rmdir()
    return Exported(tuple(out / path.name for path in files), difference)


def require_onnx() -> None:
    """Raise ``InputError`` if the packages are not there, saying how they come."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX is written and checked with packages that are not here ({error}): {INSTALL}") from error


@torch.no_grad()
def _write_checked(loaded: LoadedSam, folder: Path) -> float:
    """Write both files into ``folder``; return the largest difference. Raises ``InputError`` beyond the tolerance."""
    sam = loaded.sam
    side = int(sam.image_encoder.img_size)
    with Stage(f"writing {ENCODER}"), _exportable(sam):
        example = (torch.zeros(1, 3, side, side - 16),)
        dynamic = {"image": {2: "height", 3: "width"}}
        _write(Encoder(sam), example, folder / ENCODER, ["image"], ["image_embeddings"], dynamic)
    with Stage(f"comparing {ENCODER} with torch"):
        encoded = _Session(folder / ENCODER)
        images = [torch.rand(1, 3, *_scaled(side, size), generator=_random()) * 255 for size in CHECKED_SIZES[:2]]
        differences = [encoded.difference({"image": image}, [embed(sam, sam.preprocess(image))]) for image in images]
    cases = _cases(sam)
    with Stage(f"writing {DECODER}"):
        of = HqDecoder if isinstance(sam.mask_decoder, HqMaskDecoder) else Decoder
        axes = {"point_coords": {1: "points"}, "point_labels": {1: "points"}}
        axes |= {"masks": {2: "height", 3: "width"}}
        _write(of(sam, False), tuple(cases[0].values()), folder / DECODER, INPUTS, OUTPUTS, axes)
    with Stage(f"comparing {DECODER} with torch"):
        decoded = _Session(folder / DECODER)
        differences += [decoded.difference(case, _expected(sam, case)) for case in cases]
    return max(differences)


def _write(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> None:
    """Write a traced module. Its weights are in the file, or beside it in one if they do not fit into it."""
    import onnx

    before = {*path.parent.iterdir()}
    with warnings.catch_warnings():
        # of what is constant in a trace, which the comparison with torch is for, and of the exporter that traces
        warnings.simplefilter("ignore", TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )
    tensor_files = {*path.parent.iterdir()} - before - {path}
    if tensor_files:  # beyond 2 GB there is a file for each tensor
        model = onnx.load(path)
        for each in tensor_files:
            each.unlink()
        path.unlink()
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


@contextmanager
def _exportable(sam: Sam) -> Iterator[None]:
    """Have SAM-Adapter filter by products of matrices meanwhile: Fourier transforms of images are not in ONNX."""
    generator = getattr(sam.image_encoder, "prompt_generator", None)
    if generator is None:
        yield
        return
    filtered = sam_adapter.high_pass
    sam_adapter.high_pass = high_pass_by_products
    try:
        yield
    finally:
        sam_adapter.high_pass = filtered


def high_pass_by_products(images: Tensor, share: float) -> Tensor:
    """Return what ``sam_adapter.high_pass`` does, in real numbers: the photo less its lowest frequencies.

    These are P X Q^T, where P and Q keep the lowest frequencies of columns and rows; their real and imaginary parts are
    multiplied apart.
    """
    height, width = images.shape[-2:]
    half = int((int(height) * int(width) * share) ** 0.5) // 2
    rows, columns = (_lowest(int(length), half) for length in (height, width))
    low = rows[0] @ images @ columns[0].T - rows[1] @ images @ columns[1].T
    return (images - low).abs()


def _lowest(length: int, half: int) -> tuple[Tensor, Tensor]:
    """Return the projection onto the frequencies -half to half - 1, its real and its imaginary part (length, length).

    By NumPy: of what torch computes, a trace would be kept.
    """
    kept = np.zeros((length, 1))
    kept[np.arange(-half, half) % length] = 1
    projection = np.fft.ifft(np.fft.fft(np.eye(length), axis=0) * kept, axis=0)
    real, imaginary = (torch.from_numpy(each.astype(np.float32)) for each in (projection.real, projection.imag))
    return real, imaginary


class _Session:
    """A file of ONNX, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def difference(self, given: Mapping[str, Tensor], expected: Sequence[Tensor]) -> float:
        """Return how far outputs are from those that are expected. Raises ``InputError`` beyond the tolerance."""
        found: list[Any] = self.session.run(None, {name: value.numpy() for name, value in given.items()})
        largest = 0.0
        for name, one, other in zip((each.name for each in self.session.get_outputs()), found, expected, strict=True):
            same_shape = one.shape == tuple(other.shape)
            off = float(np.abs(one - other.numpy()).max() / other.abs().max().clamp(min=1e-6)) if same_shape else np.inf
            if not off <= TOLERANCE:
                raise InputError(
                    f"{self.path.name}: {name} differs from torch's by {off:.2g} of its largest value, more than "
                    f"{TOLERANCE:g}; nothing is written. Try other versions of onnx and onnxruntime"
                )
            largest = max(largest, off)
        return largest


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _scaled(side: int, size: tuple[int, int]) -> tuple[int, int]:
    return Frame.whole(side, *size).input_size


def _cases(sam: Sam) -> list[dict[str, Tensor]]:
    """Return random inputs of the decoder: a point, points with a box, and a point with a mask."""
    generator, side = _random(), int(sam.image_encoder.img_size)
    grid, channels = side // 16, int(sam.mask_decoder.transformer_dim)
    planes = 3 * channels if isinstance(sam.mask_decoder, HqMaskDecoder) else channels
    types = ([POSITIVE, NEGATIVE, BOX_MIN, BOX_MAX], [POSITIVE, PAD], [POSITIVE, NEGATIVE, PAD])
    cases = []
    for tokens, size, has_mask in zip(types, CHECKED_SIZES, (0, 0, 1), strict=True):
        coords = torch.rand(1, len(tokens), 2, generator=generator) * min(_scaled(side, size))
        given = (
            torch.randn(1, planes, grid, grid, generator=generator),
            coords * (torch.tensor(tokens) != PAD)[None, :, None],
            torch.tensor([tokens], dtype=torch.float32),
            torch.randn(1, 1, 4 * grid, 4 * grid, generator=generator) * 5,
            torch.tensor([float(has_mask)]),
            torch.tensor(size, dtype=torch.float32),
        )
        cases.append(dict(zip(INPUTS, given, strict=True)))
    return cases


def _expected(sam: Sam, case: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what the model puts out here, by the code that predicts and evaluates."""
    mask = case["mask_input"] if case["has_mask_input"].item() else None
    prompts = Prompts(case["point_coords"], case["point_labels"].long(), mask)
    index = torch.zeros(1, dtype=torch.long)
    logits, iou = decode_prompts(sam, case["image_embeddings"], index, prompts)
    height, width = (int(value) for value in case["orig_im_size"])
    inside = _scaled(int(sam.image_encoder.img_size), (height, width))
    return [sam.postprocess_masks(logits, inside, (height, width)), iou, logits]
