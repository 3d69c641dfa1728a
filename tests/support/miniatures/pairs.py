"""Miniatures of sets with a file per mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import ExifTags, Image

from miniatures.pictures import HEIGHT, WIDTH, Build, Drawn, Mask, Values, mask_of, save_photo, save_values, soft, white


def pairs(
    images: str,
    masks: str,
    photo: str = "{}.jpg",
    mask: str = "{}.png",
    stems: Sequence[str] = ("a", "b", "c"),
    values: Callable[[Mask], Values] = white,
    more: Callable[[Path], None] = lambda _: None,
) -> Build:
    """Photos of several sizes with a mask each."""

    def build(root: Path) -> Drawn:
        drawn: Drawn = {}
        for number, stem in enumerate(stems):
            shape = (HEIGHT + number, WIDTH - number)
            save_photo(root / images / photo.format(stem), shape)
            save_values(root / masks / mask.format(stem), values(mask_of(number, shape)))
            drawn[stem] = [mask_of(number, shape)]
        more(root)
        return drawn

    return build


def left_over(root: Path) -> None:
    save_values(root / "cascade_psp/fss_all/never_labelled.png", white(mask_of(1)))


def of_another_size(root: Path) -> None:
    for name in ("ILSVRC2014_train_00023530", "n04442312_17818"):
        save_photo(root / f"cascade_psp/DUTS-TR/{name}.jpg")
        save_values(root / f"cascade_psp/DUTS-TR/{name}.png", white(mask_of(0, (HEIGHT, WIDTH + 9))))


def results_of_a_model(root: Path) -> None:
    save_values(root / "BIG/test/a_im_seg.png", white(~mask_of(0)))
    save_values(root / "BIG/test/a_seg.png", white(~mask_of(0)))


def thin_object_original(split: str) -> Build:
    """Photos of all splits in one folder, and lists whose lines are the names of masks."""

    def build(root: Path) -> Drawn:
        every = pairs("ThinObject5K/images", "ThinObject5K/masks", stems=("t1", "t2", "v1", "e1"), values=soft)(root)
        (root / "ThinObject5K/list").mkdir()
        for name in ("train", "val", "test"):
            chosen = [stem for stem in every if stem[0] == {"train": "t", "val": "v", "test": "e"}[name]]
            (root / f"ThinObject5K/list/{name}.txt").write_text("".join(f"{stem}.png\n" for stem in chosen))
        return {stem: masks for stem, masks in every.items() if stem[0] == {"train": "t", "test": "e"}[split]}

    return build


def original_lists(name: str) -> Callable[[Path], None]:
    def more(root: Path) -> None:
        (root / name / "list").mkdir()
        (root / name / "list" / "test.txt").write_text("a\nb\nc\n")

    return more


def turned(masks: str, values: Callable[[Mask], Values], more: Callable[[Path], None] = lambda _: None) -> Build:
    """HRSOD: some photos are turned by EXIF, and their masks were drawn on them so."""

    def build(root: Path) -> Drawn:
        images = masks.rpartition("/")[0] + "/images"
        drawn = pairs(images, masks, values=values, more=more)(root)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        save_photo(root / images / "t.jpg", (HEIGHT, WIDTH), exif=exif)
        drawn["t"] = [mask_of(5, (WIDTH, HEIGHT))]
        save_values(root / masks / "t.png", values(drawn["t"][0]))
        return drawn

    return build
