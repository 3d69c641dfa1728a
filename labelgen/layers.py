"""The layers that ``labelgen`` makes: what ``dataset.json`` says of them, and so what decides their identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from typing import Any

from sum_factory.labelgen.settings import IMPORTED, UncertaintySettings
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.codecs.photo import QUALITY, chroma_of
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.exactness import LEVELS, Exactness, parts_in
from sum_factory.shared.sam.architecture import ARCHITECTURES, PATCH
from sum_factory.shared.sam.refiner import identify_refiner
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, OF_MASKS, PHOTOS, TAR, Layer, uncertainty_layer
from sum_factory.shared.shards.encoding import libraries
from sum_factory.shared.shards.originals import STRETCH
from sum_factory.shared.shards.shard_set import MASKS

ANNOTATIONS = "annotations_sha256"


def masks_layer(
    automask: AutomaskSettings, runtime: Runtime, sam: dict[str, object], encoding: str = TAR, stretch: bool = False
) -> Layer:
    """Describe the layer of pseudo-labels; ``sam`` is what ``identify_weights`` says of the SAM that makes them.

    ``stretch`` says whether photos of more than 8 bits are stretched.
    """
    return Layer(
        name=MASKS,
        encoding=encoding,
        settings={**asdict(automask), **runtime.settings(), **_of_photos(stretch)},
        weights={"sam": sam},
        provenance=_provenance(encoding),
    )


def imported_layer(
    format: str, annotations: str, exactness: Exactness, sam: Mapping[str, object], encoding: str = TAR
) -> Layer:
    """Describe the layer of masks that were imported: ``annotations`` is the SHA-256 of what they were read from.

    ``sam`` and ``exactness`` are those that maps are made with later.
    """
    told = {ANNOTATIONS: annotations, "pycocotools": version("pycocotools"), **_provenance(encoding)}
    return Layer(MASKS, encoding, {IMPORTED: format, **LEVELS[exactness].settings()}, {"sam": sam}, told)


def photos_layer(masks: Layer, encoding: str = TAR) -> Layer:
    """Describe the layer of photos at the input side of the SAM that makes ``masks``."""
    side, stretched = int(masks.weights["sam"]["image_size"]), _of_photos(bool(masks.settings.get(STRETCH)))
    return Layer(
        name=PHOTOS,
        encoding=encoding,
        settings={"side": side, "format": "jpeg", "quality": QUALITY, "chroma": chroma_of(side), **stretched},
        weights={},
        provenance={**_provenance(encoding), "pillow": version("pillow")},
    )


def _of_photos(stretch: bool) -> dict[str, Any]:
    """Return the setting of how photos are decoded. By default there is none, so that the ids of older layers stay."""
    return {STRETCH: True} if stretch else {}


def logits_layer(masks: Layer, encoding: str = TAR) -> Layer:
    """Describe the layer of the full logits of ``masks``."""
    settings = {"format": "float16", **parts_in(masks.settings), OF_MASKS: masks.id}
    return Layer(LOGITS, encoding, settings, {"sam": masks.weights["sam"]}, _provenance(encoding))


def embeddings_layer(masks: Layer, encoding: str = TAR) -> Layer:
    """Describe the layer of embeddings of the crops that ``masks`` were found in."""
    sam = masks.weights["sam"]
    cells = sam["image_size"] // PATCH
    settings = {
        "format": "float16",
        "shape": [ARCHITECTURES[sam["model_type"]].prompt_dim, cells, cells],
        **parts_in(masks.settings),
        OF_MASKS: masks.id,
    }
    return Layer(EMBEDDINGS, encoding, settings, {"sam": sam}, _provenance(encoding))


KEPT_LAYERS: Mapping[str, Callable[[Layer, str], Layer]] = {
    PHOTOS: photos_layer,
    LOGITS: logits_layer,
    EMBEDDINGS: embeddings_layer,
}
"""What describes each kept layer, given that of the masks and the encoding, in the order in which they are kept."""


def maps_layer(
    name: str,
    settings: UncertaintySettings,
    refiner: str | None,
    masks: Layer,
    encoding: str = TAR,
    use_kept: Sequence[Layer] = (),
    known_as: Sequence[str] = (),
    teacher: Mapping[str, object] | None = None,
) -> Layer:
    """Describe the layer of uncertainty maps called ``name``, of ``masks``, by the refiner at a path.

    ``teacher`` is what ``identify_weights`` says of another SAM, which the source discrepancy may compare with, in
    place of a refiner as second decoder.

    ``use_kept`` are the layers that the maps are made from, as far as they go. Kept layers are rounded to half floats,
    so the choice changes the maps; each layer's id is therefore a setting. ``known_as`` are other SHA-256s of the
    weights of the masks' SAM, by which a refiner may know it.

    Raises ``CheckpointError`` for a file that is not a refiner, or is that of another SAM, and ``SettingsError`` if the
    source needs a refiner and none is given, or the other way round.
    """
    _require_models(settings, refiner is not None, teacher is not None)
    for layer in use_kept:
        if layer.name not in settings.outputs:
            raise SettingsError(f"source {settings.source} is not made from {layer.name}: leave --use-kept out")
    sam = masks.weights["sam"]
    weights = {"sam": sam}
    if refiner is not None:
        as_what = "second_decoder" if settings.compares_models else "refiner"
        weights[as_what] = identify_refiner(refiner, sam, known_as)
    if teacher is not None:
        if teacher["image_size"] != sam["image_size"]:
            raise SettingsError(
                f"--teacher takes photos of {teacher['image_size']} pixels, and the SAM of the masks of "
                f"{sam['image_size']}: give one of the same size"
            )
        weights["teacher"] = dict(teacher)
    made_from = {layer.name: layer.id for layer in use_kept}
    return Layer(
        name=uncertainty_layer(name),
        encoding=encoding,
        settings={
            **asdict(settings),
            **parts_in(masks.settings),
            OF_MASKS: masks.id,
            **made_from,
        },
        weights=weights,
        provenance=_provenance(encoding),
    )


def _require_models(settings: UncertaintySettings, has_refiner: bool, has_teacher: bool) -> None:
    """Raise ``SettingsError`` if the models that are given are not those that the source takes."""
    source = settings.source
    if settings.compares_models:
        if has_refiner == has_teacher:
            raise SettingsError(
                f"source {source} compares SAM with one other model: give --refiner for a second decoder, or --teacher "
                "for another SAM"
            )
        return
    if settings.needs_refiner and not has_refiner:
        raise SettingsError(f"source {source} needs a refiner: give --refiner, or another --source")
    if has_refiner and not settings.needs_refiner:
        raise SettingsError(f"source {source} uses no refiner: leave --refiner out")
    if has_teacher:
        raise SettingsError(f"source {source} uses no teacher: leave --teacher out")


def _provenance(encoding: str) -> dict[str, Any]:
    made_by = {"software": f"sum-factory {_version('sum-factory')}", "torch": _version("torch")}
    return {**made_by, **libraries(encoding)}


_version = cache(version)
