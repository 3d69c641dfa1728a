"""HQ-SAM's protocol against its steps written with torch alone, from the photo to the score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sum_factory.shared.errors import InputError
from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.decode import Prompts, decode_prompts
from sum_factory.shared.sam.hq import HqMaskDecoder, HqOutput, add_hq
from sum_factory.shared.sam.runtime import Embedder
from sum_factory.trainer.data.sets import FolderPairsSettings, LabelMapsSettings
from sum_factory.trainer.evaluation.hq_sam import squeezed, squeezed_box
from sum_factory.trainer.evaluation.run import evaluate_sets
from sum_factory.trainer.evaluation.settings import Output, Protocol

TINY = SamArchitecture("tiny", 32, 2, 2, (1,), 64, window_size=2, prompt_dim=32, decoder_mlp_dim=32)
SIDE = 64


@pytest.fixture(scope="module")
def model() -> LoadedSam:
    """A random HQ-SAM, loud, so that its masks are neither empty nor full."""
    torch.manual_seed(4)
    sam = build_architecture(TINY)
    add_hq(sam)
    with torch.no_grad():
        for name, parameter in sam.mask_decoder.named_parameters():
            if parameter.dim() > 1 and "hypernetworks" not in name:
                parameter *= 2
    return LoadedSam(sam.eval(), TINY, "digest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of odd aspects, with one mask each; and label maps of two masks."""
    folder = tmp_path_factory.mktemp("squeezed")
    for name in ("images", "masks", "labels"):
        (folder / name).mkdir()
    for number, (height, width) in enumerate([(50, 131), (90, 40), (64, 64)]):
        random = np.random.default_rng(number)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 5 : height // 2, width // 4 : width - 7] = 1
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask * 255).save(folder / "masks" / f"{number}.png")
        Image.fromarray(mask + 2 * (np.arange(height) > height - 9)[:, None].astype(np.uint8)).save(
            folder / "labels" / f"{number}.png"
        )
    return folder


def by_hand(model: LoadedSam, folder: Path, number: int) -> float:
    """The steps of HQ-SAM's training script: resize both, box where the label is above 128, decode, resize, compare."""
    image = torch.from_numpy(np.array(Image.open(folder / "images" / f"{number}.png"))).permute(2, 0, 1).float()
    label = torch.from_numpy(np.array(Image.open(folder / "masks" / f"{number}.png"))).float()
    pixels = F.interpolate(image[None], (SIDE, SIDE), mode="bilinear")[0].permute(1, 2, 0).numpy().astype(np.uint8)
    small = F.interpolate(label[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]
    ys, xs = torch.nonzero(small > 128, as_tuple=True)
    corners = torch.tensor([[[xs.min(), ys.min()], [xs.max(), ys.max()]]]).float()
    with torch.no_grad():
        embedding = Embedder(model.sam).embed(pixels)
        prompts = Prompts(corners, torch.tensor([[2, 3]]))
        logits, _ = decode_prompts(model.sam, embedding, torch.zeros(1, dtype=torch.long), prompts)
        mask = F.interpolate(logits[:, :1], label.shape, mode="bilinear")[0, 0] > 0
    target = label > 128
    return float((mask & target).sum() / (mask | target).sum())


@pytest.mark.parametrize("output", ["hq", "hq+sam", "single"])
def test_scores_are_those_of_hq_sams_steps(model: LoadedSam, folder: Path, output: HqOutput) -> None:
    settings = FolderPairsSettings(
        kind="folder-pairs", images=folder / "images", masks=folder / "masks", task="salient", name="pairs"
    )
    decoder = model.sam.mask_decoder
    assert isinstance(decoder, HqMaskDecoder)
    decoder.hq_output = output
    shown: Output = output
    (result,) = evaluate_sets(model, [settings], [Protocol("squeezed-box", 1, shown)])
    rows = result.rows.to_pylist()
    assert [row["iou"] for row in rows] == pytest.approx([by_hand(model, folder, number) for number in range(3)])
    assert any(0 < row["iou"] < 1 for row in rows)
    assert {(row["first"], row["output"], row["round"]) for row in rows} == {("squeezed-box", output, 1)}


def test_single_is_the_mask_of_the_sam_below(model: LoadedSam, folder: Path) -> None:
    """Of the three outputs, the sum is that of the logits of the other two."""
    decoder, found = model.sam.mask_decoder, {}
    embedding = Embedder(model.sam).embed(np.array(Image.open(folder / "images" / "2.png")))
    prompts = Prompts(torch.tensor([[[9.0, 9.0], [50.0, 40.0]]]), torch.tensor([[2, 3]]))
    for output in ("hq", "hq+sam", "single"):
        decoder.hq_output = output
        with torch.no_grad():
            found[output] = decode_prompts(model.sam, embedding, torch.zeros(1, dtype=torch.long), prompts)[0]
    assert torch.allclose(found["hq"] + found["single"], found["hq+sam"], atol=1e-5)
    assert not torch.allclose(found["hq"], found["single"])


def test_photos_with_several_masks_are_refused_by_name(model: LoadedSam, folder: Path) -> None:
    settings = LabelMapsSettings(
        kind="label-maps", images=folder / "images", labels=folder / "labels", task="part", name="labels"
    )
    with pytest.raises(InputError, match="labels: 0 has 2 masks; HQ-SAM's protocol is for sets of one mask per photo"):
        list(evaluate_sets(model, [settings], [Protocol("squeezed-box", 1, "hq")]))


def test_mask_of_which_nothing_is_left_in_the_square_has_no_box() -> None:
    thin = np.zeros((900, 900), bool)
    thin[:, 450] = True
    assert squeezed_box(thin, SIDE) is None
    assert squeezed_box(np.ones((30, 70), bool), SIDE) == (0, 0, SIDE - 1, SIDE - 1)
    assert squeezed(np.full((5, 9, 3), 7, np.uint8), SIDE).shape == (SIDE, SIDE, 3)


def test_protocol_has_one_round_of_one_output() -> None:
    for rounds, output in ((2, "hq"), (1, "oracle")):
        with pytest.raises(ValueError, match="squeezed-box: expected 1 round of one output"):
            Protocol("squeezed-box", rounds, output)  # type: ignore[arg-type]
