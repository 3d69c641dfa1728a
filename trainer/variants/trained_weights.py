"""Files of what a variant trained, without the SAM that it sits on, which they name by its digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import TRAINED_WEIGHTS, LoadedSam, digest_of, load_sam
from sum_factory.shared.sam.forms.reading import read_content
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY, TaskPrompt
from sum_factory.trainer.variants import prepare, trainable, variants
from sum_factory.trainer.variants.variant import Variant

_OF_BASE = ("place", "sha256", "model_type")


def header_of_trained(name: str, settings: Any, place: str, base: LoadedSam) -> dict[str, Any]:
    """Return what the header says of a file of what the variant trained on the SAM ``base``, read from ``place``."""
    below = {"place": place, "sha256": base.sha256, "model_type": base.architecture.name}
    return {"kind": TRAINED_WEIGHTS, "variant": name, "variant_settings": asdict(settings), "base": below}


def load_trained(path: Path, sam: str | None = None, for_others: bool = False) -> LoadedSam:
    """Load what a variant trained, on the SAM that it sits on: ``sam``, by default where that lay in training.

    The model is a plain SAM where the variant can be merged into one. Raises ``CheckpointError`` for a file that is
    damaged, for another SAM than the one of training, and if the model is ``for_others`` that cannot read it.
    """
    read = read_content(path)
    header = read.header
    _require_header(path, header)
    variant, base = variants().get(header.get("variant", "")), header["base"]
    if variant is None:
        raise CheckpointError(
            f"{path}: of the variant {header.get('variant')!r}, which this software does not know; "
            f"there are {', '.join(variants())}"
        )
    if for_others and variant.merge is None and not variant.public_form:
        raise CheckpointError(
            f"{path}: of the variant {variant.name}, which cannot be written as plain SAM: {variant.not_plain}"
        )
    loaded = _base(path, base, sam)
    settings = _settings(path, variant, header.get("variant_settings"))
    prepare(loaded.sam, variant.name, settings, 0)
    state: dict[str, Tensor] = dict(read.content)
    table = state.pop(STATE_KEY, None)
    expected = trainable(loaded.sam)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if shapes != {name: tuple(parameter.shape) for name, parameter in expected.items()}:
        odd = sorted(shapes.keys() ^ expected.keys()) or sorted(shapes)
        raise CheckpointError(f"{path}: its tensors are not those of the variant {variant.name}: {odd[0]}")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(state[name])
    loaded.sam.requires_grad_(False)
    if variant.merge is not None:
        variant.merge(loaded.sam)
    prompt = None
    if table is not None:
        prompt = TaskPrompt(loaded.architecture.prompt_dim)
        prompt.load_state_dict({"weight": table})
    tasks = tuple(header["trained_tasks"])
    digest = digest_of(loaded.sam.state_dict(), table, tasks)
    return replace(loaded, sha256=digest, file_sha256=read.sha256, task_prompt=prompt, trained_tasks=tasks, task=None)


def _require_header(path: Path, header: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` if a header does not say what was trained on which SAM."""
    base = header.get("base")
    named = isinstance(base, Mapping) and all(isinstance(base.get(key), str) for key in _OF_BASE)
    tasks = header.get("trained_tasks")
    if not named or not isinstance(tasks, list) or not {*map(str, tasks)} <= {*TASKS}:
        raise CheckpointError(
            f"{path}: damaged: its header does not say on which SAM it sits and which tasks it was trained for; train "
            "it again, or take another checkpoint of its run"
        )


def _settings(path: Path, variant: Variant, given: Any) -> Any:
    try:
        return TypeAdapter(variant.settings).validate_python(given)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(map(str, detail["loc"]))
        raise CheckpointError(
            f"{path}: its header has settings that the variant {variant.name} does not know: {key}: {detail['msg']}; "
            "load it with the version that wrote it"
        ) from error


def _base(path: Path, base: Mapping[str, Any], sam: str | None) -> LoadedSam:
    """Load the SAM below. Raises ``CheckpointError`` if it is missing or another one."""
    place = sam or str(base["place"])
    try:
        loaded = load_sam(place)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: sits on a {base['model_type']} that cannot be loaded ({error}); give it as --sam"
        ) from error
    if loaded.sha256 != base["sha256"]:
        raise CheckpointError(
            f"{path}: sits on a {base['model_type']} with SHA-256 {base['sha256'][:12]}, and {place} has "
            f"{loaded.sha256[:12]}; give the SAM that it was trained on as --sam"
        )
    return loaded
