"""The layers that ``labelgen`` makes: what ``dataset.json`` says of them, and so what decides their identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from typing import Any

from sum_factory.labelgen.settings import AutomaskSettings, UncertaintySettings
from sum_factory.shared.codecs.photo import QUALITY, chroma_of
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.sam.architecture import ARCHITECTURES, PATCH
from sum_factory.shared.sam.refiner import identify_refiner
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, MASKS_OF_MAPS, PHOTOS, TAR, Layer, uncertainty_layer
from sum_factory.shared.shards.encoding import libraries
from sum_factory.shared.shards.shard_set import MASKS


def masks_layer(automask: AutomaskSettings, runtime: Runtime, sam: dict[str, object], encoding: str = TAR) -> Layer:
    """Describe the layer of pseudo-labels that the SAM which ``identify_weights`` describes makes."""
    return Layer(
        name=MASKS,
        encoding=encoding,
        settings={**asdict(automask), **runtime.settings()},
        weights={"sam": sam},
        provenance=_provenance(encoding),
    )


def photos_layer(sam: dict[str, object], encoding: str = TAR) -> Layer:
    """Describe the layer of photos at the input side of the SAM which ``identify_weights`` describes."""
    side = int(str(sam["image_size"]))
    return Layer(
        name=PHOTOS,
        encoding=encoding,
        settings={"side": side, "format": "jpeg", "quality": QUALITY, "chroma": chroma_of(side)},
        weights={},
        provenance={**_provenance(encoding), "pillow": version("pillow")},
    )


def logits_layer(masks: Layer, encoding: str = TAR) -> Layer:
    """Describe the layer of the full logits of ``masks``."""
    settings = {"format": "float16", "precision": masks.settings["precision"], "masks": masks.id}
    return Layer(LOGITS, encoding, settings, {"sam": masks.weights["sam"]}, _provenance(encoding))


def embeddings_layer(masks: Layer, encoding: str = TAR) -> Layer:
    """Describe the layer of embeddings of the crops that ``masks`` were found in."""
    sam = masks.weights["sam"]
    cells = sam["image_size"] // PATCH
    settings = {
        "format": "float16",
        "shape": [ARCHITECTURES[sam["model_type"]].prompt_dim, cells, cells],
        "precision": masks.settings["precision"],
        "masks": masks.id,
    }
    return Layer(EMBEDDINGS, encoding, settings, {"sam": sam}, _provenance(encoding))


def maps_layer(
    name: str,
    settings: UncertaintySettings,
    refiner: str | None,
    masks: Layer,
    encoding: str = TAR,
    use_kept: Sequence[Layer] = (),
    known_as: Sequence[str] = (),
) -> Layer:
    """Describe the layer of uncertainty maps called ``name``, of ``masks``, by the refiner at a path.

    ``use_kept`` are the layers that the maps are made from, as far as they go. Since halves are rounded, it changes
    the maps which are: each is among the settings, by its id. ``known_as`` are other digests of the weights of the
    masks' SAM, by which a refiner may know it.

    Raises ``CheckpointError`` for a refiner that is none, or another SAM's, and ``SettingsError`` if there is one where
    the source needs none, or none where it needs one.
    """
    weights = {"sam": masks.weights["sam"]}
    if settings.needs_refiner and refiner is None:
        raise SettingsError(f"source {settings.source} needs a refiner: give --refiner, or another --source")
    if refiner is not None:
        if not settings.needs_refiner:
            raise SettingsError(f"source {settings.source} uses no refiner: leave --refiner out")
        weights["refiner"] = identify_refiner(refiner, masks.weights["sam"], known_as)
    made_from = {layer.name: layer.id for layer in use_kept}
    return Layer(
        name=uncertainty_layer(name),
        encoding=encoding,
        settings={
            **asdict(settings),
            "precision": masks.settings["precision"],
            MASKS_OF_MAPS: masks.id,
            **made_from,
        },
        weights=weights,
        provenance=_provenance(encoding),
    )


def _provenance(encoding: str) -> dict[str, Any]:
    made_by = {"software": f"sum-factory {_version('sum-factory')}", "torch": _version("torch")}
    return {**made_by, **libraries(encoding)}


_version = cache(version)
