"""Prediction against upstream's predictor, what is refused, and the ``predict`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import segment_anything
import torch
from click.testing import CliRunner, Result
from PIL import Image

from sum_factory.shared.errors import ImageError, InputError, SettingsError, SumError
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture, build_architecture
from sum_factory.shared.sam.checkpoint import LoadedSam, to_safetensors
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY, TaskPrompt
from sum_factory.trainer.commands.predict import predict_command
from sum_factory.trainer.predict import (
    BOX_COLOUR,
    MASK_COLOUR,
    NEGATIVE_COLOUR,
    POSITIVE_COLOUR,
    Predictor,
    UserPrompt,
    draw_prediction,
    predict_mask,
)

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
HEIGHT, WIDTH = 75, 120


@pytest.fixture(scope="module")
def plain() -> LoadedSam:
    torch.manual_seed(0)
    return LoadedSam(build_architecture(TINY), TINY, "digest")


@pytest.fixture(scope="module")
def prompted(plain: LoadedSam) -> LoadedSam:
    """The same SAM with a task prompt that was trained for salient objects."""
    table = TaskPrompt(32)
    with torch.no_grad():
        table.weight.normal_(0, 3, generator=torch.Generator().manual_seed(1))
    return LoadedSam(plain.sam, TINY, "digest", table, ("unspecified", "salient"))


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("prompt", "upstream"),
    [
        (UserPrompt(((30, 40),)), {"points": [(30, 40)], "labels": [1]}),
        (UserPrompt(((30.5, 40), (100, 70))), {"points": [(30.5, 40), (100, 70)], "labels": [1, 1]}),
        (UserPrompt(((30, 40),), ((100, 70), (5, 6))), {"points": [(30, 40), (100, 70), (5, 6)], "labels": [1, 0, 0]}),
        (UserPrompt(box=(10, 20, 90, 70)), {"box": (10, 20, 90, 70)}),
        (
            UserPrompt(((30, 40),), box=(10, 20, 120, 75)),
            {"points": [(30, 40)], "labels": [1], "box": (10, 20, 120, 75)},
        ),
        (UserPrompt((), ((30, 40),), (10, 20, 90, 70)), {"points": [(30, 40)], "labels": [0], "box": (10, 20, 90, 70)}),
    ],
)
def test_prediction_is_upstreams(
    plain: LoadedSam, image: npt.NDArray[np.uint8], prompt: UserPrompt, upstream: dict[str, Any]
) -> None:
    predictor = segment_anything.SamPredictor(plain.sam)
    predictor.set_image(image)
    several = "box" not in upstream and len(upstream["points"]) == 1
    masks, predicted, _ = predictor.predict(
        np.array(upstream["points"]) if "points" in upstream else None,
        np.array(upstream["labels"]) if "labels" in upstream else None,
        np.array(upstream["box"]) if "box" in upstream else None,
        multimask_output=several,
    )
    best = int(np.argmax(predicted))
    ours = predict_mask(plain, image, prompt)
    assert ours.mask.shape == (HEIGHT, WIDTH)
    assert np.array_equal(ours.mask, masks[best])
    assert ours.predicted_iou == pytest.approx(float(predicted[best]), rel=1e-5)  # sums are taken in another order
    assert (ours.output, ours.outputs) == (best + 1, 3 if several else 1)
    assert ours.prompted_task is None


def test_ambiguous_point_gets_the_output_of_highest_predicted_iou(
    plain: LoadedSam, image: npt.NDArray[np.uint8]
) -> None:
    chosen = {predict_mask(plain, image, UserPrompt(((x, y),))).output for x in (5, 60, 110) for y in (5, 40, 70)}
    assert chosen <= {1, 2, 3}
    head = plain.sam.mask_decoder.iou_prediction_head.layers[-1]
    before = head.bias.detach().clone()
    try:
        for output in (1, 2, 3):
            with torch.no_grad():
                head.bias.copy_(before)
                head.bias[output] += 100
            ours = predict_mask(plain, image, UserPrompt(((60, 40),)))
            assert (ours.output, ours.predicted_iou > 50) == (output, True)
    finally:
        with torch.no_grad():
            head.bias.copy_(before)


@torch.no_grad()
def test_task_vector_acts_as_if_added_to_the_dense_prompt(prompted: LoadedSam, image: npt.NDArray[np.uint8]) -> None:
    sam = prompted.sam
    predictor = segment_anything.SamPredictor(sam)
    predictor.set_image(image)
    point = predictor.transform.apply_coords(np.array([[30, 40], [100, 70]]), (HEIGHT, WIDTH))
    sparse, dense = sam.prompt_encoder((torch.tensor(point[None]).float(), torch.tensor([[1, 0]])), None, None)
    assert prompted.task_prompt is not None
    vector = prompted.task_prompt.weight[TASKS.index("salient")]
    low_res, predicted = sam.mask_decoder(
        image_embeddings=predictor.features,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense + vector[None, :, None, None],
        multimask_output=False,
    )
    logits = sam.postprocess_masks(low_res, predictor.input_size, (HEIGHT, WIDTH))[0, 0]
    prompt = UserPrompt(((30, 40),), ((100, 70),))
    ours = predict_mask(prompted, image, prompt, "salient")
    assert ours.prompted_task == "salient"
    assert ours.predicted_iou == pytest.approx(float(predicted[0, 0]), abs=1e-4)
    sure = (logits.abs() > 1e-3).numpy()
    assert np.array_equal(ours.mask[sure], (logits > 0).numpy()[sure])
    assert ours.predicted_iou != pytest.approx(predict_mask(prompted, image, prompt).predicted_iou, abs=1e-3)


def test_untrained_task_is_unspecified(prompted: LoadedSam, image: npt.NDArray[np.uint8]) -> None:
    prompt = UserPrompt(((30, 40),))
    part, unspecified = predict_mask(prompted, image, prompt, "part"), predict_mask(prompted, image, prompt)
    assert part.prompted_task == "unspecified"
    assert part.predicted_iou == unspecified.predicted_iou
    assert np.array_equal(part.mask, unspecified.mask)


def test_plain_weights_take_no_task(plain: LoadedSam, image: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(SettingsError, match=r"no task prompt.*'salient'"):
        predict_mask(plain, image, UserPrompt(((30, 40),)), "salient")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (UserPrompt(((120, 10),)), r"point 120,10 is outside the image: it is 120 x 75, x goes from 0 to 119"),
        (UserPrompt(((10, 75),)), r"point 10,75 is outside .* y from 0 to 74"),
        (UserPrompt(((10, 10),), ((-1, 10),)), r"point -1,10 is outside"),
        (UserPrompt(box=(10, 10, 121, 20)), r"box 10,10,121,20 is empty or not inside"),
        (UserPrompt(box=(20, 10, 10, 20)), r"box 20,10,10,20 is empty"),
        (UserPrompt(box=(-1, 10, 10, 20)), r"box -1,10,10,20 is empty or not inside"),
        (UserPrompt(), "nothing to segment"),
        (UserPrompt((), ((10, 10),)), "nothing to segment"),
    ],
)
def test_prompts_that_point_nowhere_are_refused(
    plain: LoadedSam, image: npt.NDArray[np.uint8], prompt: UserPrompt, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        predict_mask(plain, image, prompt)


def test_too_thin_image_is_refused(plain: LoadedSam) -> None:
    with pytest.raises(ImageError, match="300 x 1 is too thin"):
        predict_mask(plain, np.zeros((1, 300, 3), np.uint8), UserPrompt(((10, 0),)))


def test_drawing_shows_mask_outline_and_prompts_and_leaves_the_rest() -> None:
    image = np.full((300, 300, 3), 100, np.uint8)
    mask = np.zeros((300, 300), bool)
    mask[50:150, 50:150] = True
    drawn = draw_prediction(image, mask, UserPrompt(((100, 100),), ((200, 200),), (20, 20, 300, 280)))
    assert tuple(drawn[100, 100]) == POSITIVE_COLOUR
    assert tuple(drawn[200, 200]) == NEGATIVE_COLOUR
    for y, x in ((20, 160), (279, 299), (160, 20), (160, 299)):
        assert tuple(drawn[y, x]) == BOX_COLOUR
    inside, edge = drawn[80, 80].astype(float), drawn[80, 50].astype(float)
    assert np.allclose(inside, (100 + np.array(MASK_COLOUR)) / 2, atol=1)
    assert np.abs(edge - MASK_COLOUR).sum() < np.abs(inside - MASK_COLOUR).sum()
    assert tuple(drawn[250, 250]) == (100, 100, 100)
    assert (image == 100).all()


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(image: npt.NDArray[np.uint8], tmp_path: Path) -> Path:
    path = tmp_path / "a photo.png"
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def checkpoint(prompted: LoadedSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training run's checkpoint."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    assert prompted.task_prompt is not None
    state = {**prompted.sam.state_dict(), STATE_KEY: prompted.task_prompt.weight}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(to_safetensors(state, {"trained_tasks": prompted.trained_tasks}))
    return folder


@pytest.fixture
def plain_file(plain: LoadedSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    path = tmp_path / "sam.pth"
    torch.save(plain.sam.state_dict(), path)
    return path


def predict(*arguments: str | Path) -> Result:
    """Call the command; errors that are not a user's are the test's."""
    result = CliRunner().invoke(predict_command, [*map(str, arguments), "--device=cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit | SumError):
        raise result.exception
    return result


def test_command_writes_mask_and_overlay(
    photo: Path, checkpoint: Path, tmp_path: Path, prompted: LoadedSam, image: npt.NDArray[np.uint8]
) -> None:
    out = tmp_path / "out"
    prompt = ("--point=30,40", "--negative", "100,70", "--box", "10,20,110,70", "--task=salient")
    result = predict(photo, *prompt, "--weights", checkpoint, "--out", out)
    assert result.exit_code == 0
    asked = UserPrompt(((30, 40),), ((100, 70),), (10, 20, 110, 70))
    expected = predict_mask(prompted, image, asked, "salient")
    assert result.stdout.startswith(f"predicted IoU {expected.predicted_iou:.3f} (the single-mask output)")
    assert sorted(path.name for path in out.iterdir()) == ["a photo_mask.png", "a photo_overlay.png"]
    mask = np.array(Image.open(out / "a photo_mask.png"))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected.mask * 255)
    overlay = np.array(Image.open(out / "a photo_overlay.png"))
    assert np.array_equal(overlay, draw_prediction(image, expected.mask, asked))


def test_command_says_which_output_and_which_task_it_used(photo: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = predict(photo, "--point=30,40", "--task=part", "--weights", checkpoint, "--out", tmp_path / "out")
    assert result.exit_code == 0
    first, second, _ = result.stdout.splitlines()
    assert "never trained for the task 'part' (trained: unspecified, salient); prompted as 'unspecified'" in first
    assert " of 3, the one of highest predicted IoU)" in second


def test_command_refuses_what_cannot_be(photo: Path, plain_file: Path, tmp_path: Path) -> None:
    common = ("--weights", plain_file, "--out", tmp_path / "out")
    task = predict(photo, "--point=30,40", "--task=salient", *common)
    assert isinstance(task.exception, SettingsError)
    assert "no task prompt" in str(task.exception)
    assert isinstance(predict(photo, "--point=120,40", *common).exception, SettingsError)
    missing = predict(tmp_path / "none.png", "--point=1,1", *common)
    assert isinstance(missing.exception, InputError)
    assert "none.png: cannot be read (No such file" in str(missing.exception)
    (tmp_path / "text.png").write_text("no photo")
    assert isinstance(predict(tmp_path / "text.png", "--point=1,1", *common).exception, ImageError)
    Image.new("RGB", (300, 1)).save(tmp_path / "line.png")
    thin = predict(tmp_path / "line.png", "--point=1,0", *common)
    assert str(thin.exception) == f"{tmp_path}/line.png: 300 x 1 is too thin for SAM; cut it up"
    for option, said in (
        ("--point=30", "x,y"),
        ("--point=a,b", "x,y"),
        ("--point=nan,1", "x,y"),
        ("--box=1,2,3", "x0"),
    ):
        wrong = predict(photo, option, *common)
        assert wrong.exit_code == 2
        assert f"expected {said}" in wrong.stderr
    assert not (tmp_path / "out").exists()


def test_predictor_takes_points_labels_and_boxes(
    plain: LoadedSam, image: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    model = Predictor(plain)
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    boxes = [(10, 5, 60, 70), (50, 20, 110, 60)]
    for photo in (image, path, str(path), Image.fromarray(image)):
        for given in (boxes, np.array(boxes)):
            found = model.predict(photo, boxes=given)
            for box, one in zip(boxes, found, strict=True):
                ours = predict_mask(plain, image, UserPrompt(box=box))
                assert np.array_equal(one.mask, ours.mask)
                assert one.predicted_iou == pytest.approx(ours.predicted_iou, abs=1e-6)
    (clicked,) = model.predict(image, points=[(30, 40), (100, 70)], labels=[1, 0], boxes=boxes[0])
    expected = predict_mask(plain, image, UserPrompt(((30, 40),), ((100, 70),), boxes[0]))
    assert np.array_equal(clicked.mask, expected.mask)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "nothing to segment"),
        ({"points": [(30, 40)], "labels": [1, 1]}, "labels: expected 1 of 1"),
        ({"points": [(30, 40)], "labels": [2]}, "labels: expected 1 of 1"),
        ({"points": [(30, 40)], "boxes": [(0, 0, 9, 9), (1, 1, 9, 9)]}, "points of one object, and 2 boxes"),
        ({"points": [(30, 40, 1)]}, "points: expected pixels in rows of 2"),
        ({"boxes": [1, 2, 3]}, "boxes: expected pixels in rows of 4"),
        ({"points": [(30,), (1, 2)]}, "points: expected numbers"),
        ({"points": [(float("nan"), 40)]}, "outside the image"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(
    plain: LoadedSam, image: npt.NDArray[np.uint8], prompts: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        Predictor(plain).predict(image, **prompts)
