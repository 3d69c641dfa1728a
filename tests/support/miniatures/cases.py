"""All miniatures of public sets, and what a set that is read from one must hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from miniatures.annotations import (
    INNER,
    coco_set,
    entity_train,
    entity_train_parts,
    entity_val,
    entity_val_part,
    fashionpedia,
    ibd,
    ishape_coco,
    ishape_maps,
    lvis,
    ndd20,
    paco,
    sa_1b,
    trashcan,
)
from miniatures.label_maps import (
    VOID_CLASSES,
    ade_full,
    cityscapes,
    coco_panoptic,
    davis,
    maps,
    mhp_v1,
    mhp_v2,
    pascal_part,
    save_without_palette,
    voc,
)
from miniatures.pairs import (
    left_over,
    of_another_size,
    original_lists,
    pairs,
    results_of_a_model,
    thin_object_original,
    turned,
)
from miniatures.pictures import Build, Drawn, numbered, save_palette, soft, white
from sum_factory.trainer.data.human import HumanSet

FACE = {value: value for value in range(1, 9)}
HQ, THIN = "cascade_psp", "thin_object_detection"
CASES: dict[str, tuple[str, Build]] = {
    "DIS-TR": ("dis-tr", pairs("DIS5K/DIS-TR/im", "DIS5K/DIS-TR/gt", stems=("1#Art#2#Bench#3_o", "2#Art#2#Bench#4"))),
    "DIS-TR nested": ("dis-tr", pairs("DIS5K/DIS5K/DIS-TR/im", "DIS5K/DIS5K/DIS-TR/gt")),
    "DIS-VD": ("dis-vd", pairs("DIS5K/DIS-VD/im", "DIS5K/DIS-VD/gt")),
    "ThinObject5K train": (
        "thinobject5k-train",
        pairs(f"{THIN}/ThinObject5K/images_train", f"{THIN}/ThinObject5K/masks_train", values=soft),
    ),
    "ThinObject5K train, original": ("thinobject5k-train", thin_object_original("train")),
    "ThinObject5K test": (
        "thinobject5k-test",
        pairs(f"{THIN}/ThinObject5K/images_test", f"{THIN}/ThinObject5K/masks_test", values=soft),
    ),
    "ThinObject5K test, original": ("thinobject5k-test", thin_object_original("test")),
    "COIFT": ("coift", pairs(f"{THIN}/COIFT/images", f"{THIN}/COIFT/masks")),
    "COIFT, original": (
        "coift",
        pairs("COIFT/images", "COIFT/masks", values=numbered, more=original_lists("COIFT")),
    ),
    "HRSOD": ("hrsod", turned(f"{THIN}/HRSOD/masks_max255", white)),
    "HRSOD, original": ("hrsod", turned("HRSOD/masks", numbered, original_lists("HRSOD"))),
    "FSS-1000": ("fss-1000", pairs(f"{HQ}/fss_all", f"{HQ}/fss_all", more=left_over)),
    "FSS-1000, original": (
        "fss-1000",
        pairs("fewshot_data/fewshot_data", "fewshot_data/fewshot_data", stems=("ab_wheel/1", "ab_wheel/2", "abacus/1")),
    ),
    "DUTS-TR": ("duts-tr", pairs(f"{HQ}/DUTS-TR", f"{HQ}/DUTS-TR", more=of_another_size)),
    "DUTS-TR, original": ("duts-tr", pairs("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask")),
    "DUTS-TE": ("duts-te", pairs(f"{HQ}/DUTS-TE", f"{HQ}/DUTS-TE")),
    "DUTS-TE, original": ("duts-te", pairs("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask")),
    "ECSSD": ("ecssd", pairs(f"{HQ}/ecssd", f"{HQ}/ecssd")),
    "ECSSD, original": ("ecssd", pairs("ECSSD/images", "ECSSD/ground_truth_mask")),
    "MSRA-10K": ("msra-10k", pairs(f"{HQ}/MSRA_10K", f"{HQ}/MSRA_10K")),
    "MSRA-10K, original": ("msra-10k", pairs("MSRA10K_Imgs_GT/Imgs", "MSRA10K_Imgs_GT/Imgs")),
    "DUT-OMRON": ("dut-omron", pairs("DUT-OMRON/DUT-OMRON-image", "DUT-OMRON/pixelwiseGT-new-PNG")),
    "DUT-OMRON nested": (
        "dut-omron",
        pairs("DUT-OMRON-image/DUT-OMRON-image", "pixelwiseGT-new-PNG/pixelwiseGT-new-PNG"),
    ),
    "BIG": ("big-test", pairs("BIG/test", "BIG/test", "{}_im.jpg", "{}_gt.png", more=results_of_a_model)),
    "BIG val": ("big-val", pairs("BIG/val", "BIG/val", "{}_im.jpg", "{}_gt.png", ("1_ab_o_dog", "1_ab_o_tv"))),
    "VOCEVAL": ("voceval", pairs("VOCEVAL", "VOCEVAL", "{}_im.png", "{}_gt.png", ("2007_000123_08", "2007_000123_15"))),
    "Pascal-S": ("pascal-s", pairs("Pascal-S/Imgs", "Pascal-S/Imgs", values=soft)),
    "EntitySeg train": ("entityseg-train", entity_train),
    "EntitySeg train, parts": ("entityseg-train", entity_train_parts("entityseg_train_0{}.json")),
    "EntitySeg train, older": ("entityseg-train", entity_train_parts("entityv2_0{}_entity_train.json")),
    **{f"EntitySeg val {n}": (f"entityseg-val-{n - 1}", entity_val(n)) for n in INNER},
    **{f"EntitySeg val {n}, older": (f"entityseg-val-{n - 1}", entity_val_part(n)) for n in INNER},
    "MHP v1 train": ("mhp-v1-train", mhp_v1("train")),
    "MHP v1 val": ("mhp-v1-val", mhp_v1("val")),
    "MHP v2 train": ("mhp-v2-train", mhp_v2("train")),
    "MHP v2 val": ("mhp-v2-val", mhp_v2("val")),
    **{
        f"EasyPortrait {split}": (
            f"easyportrait-{split}",
            maps(f"EasyPortrait/images/{split}", f"EasyPortrait/annotations/{split}", FACE),
        )
        for split in ("train", "val")
    },
    **{f"Fashionpedia {split}": (f"fashionpedia-{split}", fashionpedia(split, False)) for split in ("train", "val")},
    **{
        f"Fashionpedia subpart {split}": (f"fashionpedia-subpart-{split}", fashionpedia(split, True))
        for split in ("train", "val")
    },
    "Fashionpedia counted from 1": ("fashionpedia-val", fashionpedia("val", False, shift=1)),
    "Fashionpedia subpart counted from 1": ("fashionpedia-subpart-val", fashionpedia("val", True, shift=1)),
    "PACO train": ("paco-parts-train", paco("train", "PART")),
    "PACO val": ("paco-parts-val", paco("val", "PART")),
    "PACO val, photos beside": ("paco-parts-val", paco("val", "PART", "PACO")),
    "PACO train, photos beside": ("paco-parts-train", paco("train", "PART", "PACO")),
    "PACO objects": ("paco-objects-val", paco("val", "OBJECT")),
    "PACO objects, photos beside": ("paco-objects-val", paco("val", "OBJECT", "PACO")),
    **{f"Cityscapes {split}": (f"cityscapes-{split}", cityscapes(split)) for split in ("train", "val")},
    **{
        f"EgoHOS {split}": (f"egohos-{split}", maps(f"EgoHOS/{split}/image", f"EgoHOS/{split}/label", {1: 0, 4: 4}))
        for split in ("train", "val")
    },
    "DRAM": (
        "dram-test",
        maps(
            "DRAM_processed/test", "DRAM_processed/labels", {15: 0, 3: 4}, void=(255,), stems=("cubism/b/1", "real/a/1")
        ),
    ),
    "iShape": ("ishape-val", ishape_coco),
    "iShape, maps": ("ishape-val", ishape_maps),
    "GTAV": (
        "gtav",
        maps(
            "GTAV/images", "GTAV/labels", {7: 0, 26: 4}, "{}.png", void=VOID_CLASSES, save=save_palette, background=23
        ),
    ),
    "NDD20": ("ndd20", ndd20),
    **{f"TrashCan {split}": (f"trashcan-{split}", trashcan(split)) for split in ("train", "val")},
    **{f"IBD {split}": (f"ibd-{split}", ibd(split)) for split in ("train", "val")},
    **{f"COCO {split}": (f"coco-{split}", coco_set(split)) for split in ("train2017", "val2017")},
    **{
        f"COCO {split}, in images": (f"coco-{split}", coco_set(split, "images/{}"))
        for split in ("train2017", "val2017")
    },
    "COCO panoptic": ("coco-panoptic-val2017", coco_panoptic("val2017")),
    "COCO panoptic, in images": ("coco-panoptic-val2017", coco_panoptic("images/val2017")),
    **{
        f"COCO-Stuff in {labels}": (
            "coco-stuff-val2017",
            maps(images, labels, {0: 0, 91: 4}, void=(255,), background=181),
        )
        for images, labels in (
            ("coco/val2017", "coco/stuffthingmaps/val2017"),
            ("coco/val2017", "coco/stuffthingmaps_trainval2017/val2017"),
            ("coco/images/val2017", "coco/annotations/val2017"),
        )
    },
    **{
        f"LVIS {split} in {place or 'the folder of COCO'}": (f"lvis-v1-{split}", lvis(split, place))
        for split in ("train", "val")
        for place in ("annotations", "")
    },
    "ADE20K": (
        "ade20k-val",
        maps("ADEChallengeData2016/images/validation", "ADEChallengeData2016/annotations/validation", {150: 0, 3: 4}),
    ),
    "ADE20K full": ("ade20k-full-val", ade_full),
    **{f"VOC {split}": (f"voc2012-{split}", voc(split)) for split in ("train", "val")},
    "VOC without its palette": ("voc2012-val", voc("val", save_without_palette)),
    "Pascal-Part": ("pascal-part", pascal_part),
    "DAVIS 2016": ("davis2016-val", davis("2016")),
    "DAVIS 2017": ("davis2017-val", davis("2017")),
    "SA-1B": ("sa-1b", sa_1b(["SA-1B/sa_000000", "SA-1B/sa_000001"])),
    "SA-1B in one folder": ("sa-1b", sa_1b(["SA-1B", "SA-1B"])),
}
"""Miniatures: the set that each is of, and what builds it."""


def require_drawn(human: HumanSet, drawn: Drawn) -> None:
    """The set has these photos, and of each these masks, in any order."""
    assert sorted(human.keys) == sorted(drawn)
    for index, key in enumerate(human.keys):
        sample = human.load(index)
        found = sorted(mask.tobytes() for mask in sample.masks)
        assert sample.image.shape[:2] == drawn[key][0].shape
        assert found == sorted(mask.tobytes() for mask in drawn[key]), key
    if human.mask_count is not None:
        assert human.mask_count == sum(map(len, drawn.values()))


def built(names: Sequence[str], root: Path) -> dict[str, Drawn]:
    """Build the first miniature of each set."""
    first = dict(reversed(CASES.values()))
    return {name: first[name](root) for name in names}
