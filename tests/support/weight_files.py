"""Files and folders that people hold SAM's weights in, made of upstream's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sum_factory.shared.sam.architecture import SamArchitecture

State = dict[str, Tensor]

TINY = SamArchitecture("tiny", 32, 2, 2, (1,), 128, window_size=3, prompt_dim=32, decoder_mlp_dim=64)
"""That of ``tiny_sam``."""


def named_by_hugging_face(state: State) -> State:
    """Rename upstream's weights as the Hugging Face libraries do, part by part."""
    renamed = {}
    for name, value in state.items():
        first, *parts = name.split(".")
        if first == "image_encoder":
            first = "vision_encoder"
            if parts[0] == "blocks":
                parts[0] = "layers"
                if parts[2] in ("norm1", "norm2"):
                    parts[2] = "layer_" + parts[2]
            elif parts[0] == "patch_embed":
                parts[1] = "projection"
            elif parts[0] == "neck":
                parts[1] = ["conv1", "layer_norm1", "conv2", "layer_norm2"][int(parts[1])]
        elif first == "prompt_encoder":
            if parts[0] == "pe_layer":
                renamed["shared_image_embedding.positional_embedding"] = value.clone()
                parts = ["shared_embedding", "positional_embedding"]
            elif parts[0] == "point_embeddings":
                parts[0] = "point_embed"
            elif parts[0] == "mask_downscaling":
                layers = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
                parts[:2] = ["mask_embed", layers[parts[1]]]
        elif parts[0] == "output_upscaling":
            parts[:2] = [{"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}[parts[1]]]
        elif parts[0] in ("iou_prediction_head", "output_hypernetworks_mlps"):
            layer = {"0": ["proj_in"], "1": ["layers", "0"], "2": ["proj_out"]}[parts[-2]]
            parts = [*parts[:-3], *layer, parts[-1]]
        elif parts[0] == "transformer":
            parts = [re.sub(r"^norm(?=\d|_final)", "layer_norm", part) for part in parts]
        renamed[".".join([first, *parts])] = value
    return renamed


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def by_part(state: State) -> dict[str, State]:
    """Return a dictionary of each part of the model, as some programs save it."""
    parts: dict[str, State] = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        parts.setdefault(first, {})[rest] = value
    return parts


def torch_file(make: Callable[[State], Any], name: str = "a.pth") -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        torch.save(make(state), folder / name)
        return folder / name

    return write


def safetensors_file(name: str) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        save_file(state, folder / name)
        return folder / name

    return write


def folder_of(*files: str, config: bool = True) -> Callable[[State, Path], Path]:
    """Write weights as a folder of the Hugging Face libraries; of several files, with an index."""

    def write(state: State, folder: Path) -> Path:
        state = named_by_hugging_face(state)
        if config:
            told = {"model_type": "sam", "vision_config": {"hidden_act": "gelu"}, "mask_decoder_config": {}}
            (folder / "config.json").write_text(json.dumps(told))
        weight_map = {key: files[k % len(files)] for k, key in enumerate(state)}
        for name in files:
            part = {key: value for key, value in state.items() if weight_map[key] == name}
            if name.endswith(".bin"):
                torch.save(part, folder / name)
            else:
                save_file(part, folder / name)
        if len(files) > 1:
            whole = "pytorch_model.bin" if files[0].endswith(".bin") else "model.safetensors"
            (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return write


def checkpoint_of_a_run(state: State, folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder


def without_tied_key(state: State) -> State:
    renamed = named_by_hugging_face(state)
    del renamed["prompt_encoder.shared_embedding.positional_embedding"]
    return renamed


PIXELS = {
    "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
}
ADAM = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}

FORMS: dict[str, Callable[[State, Path], Path]] = {
    "official": torch_file(lambda state: state),
    "of data parallelism": torch_file(lambda state: prefixed(state, "module.")),
    "compiled": torch_file(lambda state: prefixed(state, "_orig_mod.")),
    "a part compiled": torch_file(
        lambda state: {
            name.replace("image_encoder.", "image_encoder._orig_mod."): value for name, value in state.items()
        }
    ),
    "a member": torch_file(lambda state: prefixed(state, "sam.")),
    "a member of what is trained in parallel": torch_file(lambda state: prefixed(state, "module.sam_model.")),
    "with an optimizer": torch_file(lambda state: {"model": state, "optimizer": ADAM, "epoch": 3}),
    "of Lightning": torch_file(
        lambda state: {"state_dict": prefixed(state, "model."), "epoch": 1, "optimizer_states": [ADAM]}
    ),
    "wrapped twice": torch_file(lambda state: {"checkpoint": {"model_state_dict": prefixed(state, "module.")}}),
    "a moving average": torch_file(lambda state: {"ema": state, "steps": 7}),
    "by part": torch_file(by_part),
    "with constants": torch_file(lambda state: {**state, **PIXELS}),
    "safetensors": safetensors_file("a.safetensors"),
    "safetensors called .pth": safetensors_file("a.pth"),
    "safetensors called nothing": safetensors_file("weights"),
    "a pickle called .safetensors": torch_file(lambda state: state, "a.safetensors"),
    "of an old PyTorch": lambda state, folder: (
        torch.save(state, folder / "a.pth", _use_new_zipfile_serialization=False),
        folder / "a.pth",
    )[1],
    "the folder of a run": checkpoint_of_a_run,
    "Hugging Face": torch_file(named_by_hugging_face),
    "Hugging Face, the tied key once": torch_file(without_tied_key),
    "Hugging Face, wrapped": torch_file(lambda state: {"model": prefixed(named_by_hugging_face(state), "module.")}),
    "Hugging Face, a folder": folder_of("model.safetensors"),
    "Hugging Face, a folder without its config": folder_of("model.safetensors", config=False),
    "Hugging Face, an old folder": folder_of("pytorch_model.bin"),
    "Hugging Face, cut up": folder_of("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    "Hugging Face, an old folder, cut up": folder_of("pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin"),
}


def sum_of_its_authors(state: State, rows: Tensor) -> State:
    """Return weights as SUM's authors save them: a tensor of the prompt encoder for each task."""
    vectors = {f"prompt_encoder.task_prompt_embedding.{k}.weight": row[None].clone() for k, row in enumerate(rows)}
    return {**state, **vectors}
