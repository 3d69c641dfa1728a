"""Read a file or folder of weights: what is in it is told by its first bytes, whatever it is called.

Pickles are read with ``weights_only``: nothing in them is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.readings import READINGS
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_FILE

LONGEST_HEADER = 100_000_000
"""Bytes that safetensors itself allows a header."""
HEADER = "sum_factory"
"""Key of the JSON object that says, in the header of a safetensors file, how its weights were made."""
CONFIG = "config.json"
"""What the Hugging Face libraries tell of a model, beside its weights."""
NAMES_IN_FOLDERS = (WEIGHTS_FILE, "model.safetensors", "pytorch_model.bin")
"""What weights in a folder are called; what stands first is taken."""
INDEX = ".index.json"
"""Behind the name of weights that are cut into several files: which tensor is in which of them."""
EXPECTED = f"SAM weights (a file or a folder), an id on the Hugging Face hub (owner/name), or {PACKAGED!r}"


@dataclass(frozen=True)
class Read:
    """What a file or folder holds.

    ``content`` is what was saved, tensors in dictionaries mostly; ``header`` is this project's own, ``config`` that of
    the Hugging Face libraries, each empty if there is none. ``sha256`` is that of the file, or of the files' digests.
    """

    content: Any
    sha256: str
    header: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def read_content(path: Path) -> Read:
    """Read a file, or the weights in a folder. Raises ``CheckpointError`` if it is missing, damaged or no weights."""
    return _read_folder(path) if path.is_dir() else _read_file(path)


def read_header(path: Path) -> dict[str, Any]:
    """Return what the header of a safetensors file says of how its weights were made; empty if it says nothing."""
    with path.open("rb") as file:
        start = file.read(9)
        return _header_in(start + file.read(int.from_bytes(start[:8], "little"))) if is_safetensors(start) else {}


def is_safetensors(data: bytes) -> bool:
    """Whether a file that begins with ``data`` is one of safetensors: the length of a JSON object, then this.

    The length may begin with any byte, also with that of a pickle or a zip: only it tells them apart, being small.
    """
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= LONGEST_HEADER


def _read_folder(folder: Path) -> Read:
    config = _read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    for name in NAMES_IN_FOLDERS:
        if (folder / name).is_file():
            read = _read_file(folder / name)
            return Read(read.content, read.sha256, read.header, config)
        if (folder / (name + INDEX)).is_file():
            return _read_several(folder, folder / (name + INDEX), config)
    raise CheckpointError(
        f"{folder}: no weights in this folder; expected {', '.join(NAMES_IN_FOLDERS)}, or the index of one of the last "
        "two, as a checkpoint of `trainer fit` or a model of the Hugging Face libraries has them"
    )


def _read_several(folder: Path, index: Path, config: Mapping[str, Any]) -> Read:
    """Read weights that are cut into several files: each tensor from the file that the index names."""
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{index}: expected a weight_map of tensors and files; download it again")
    content: dict[str, Any] = {}
    digests = []
    for name in sorted({str(name) for name in files.values()}):
        if Path(name).name != name or name in {".", ".."}:
            raise CheckpointError(f"{index}: names {name!r}, which is no file of its own folder; download it again")
        read = _read_file(folder / name)
        digests.append(read.sha256)
        found = read.content if isinstance(read.content, dict) else {}
        content |= {key: value for key, value in found.items() if files.get(key) == name}
    missing = [key for key in files if key not in content]
    if missing:
        raise CheckpointError(f"{index}: {missing[0]} is not in {files[missing[0]]}; download both again")
    return Read(content, hashlib.sha256("".join(digests).encode()).hexdigest(), {}, config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path}: expected a JSON object; download it again")
    return told


def _read_file(path: Path) -> Read:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected {EXPECTED}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    READINGS.times, READINGS.bytes = READINGS.times + 1, READINGS.bytes + len(data)
    _require_weights(data, path)
    try:
        content = load(data) if is_safetensors(data) else _unpickle(data)
        header = _header_in(data) if is_safetensors(data) else {}
    except Exception as error:  # whatever a library raises: these bytes cannot be read
        raise CheckpointError(_why_unread(path, len(data), error)) from error
    return Read(content, hashlib.sha256(data).hexdigest(), header)


def _unpickle(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _header_in(data: bytes) -> dict[str, Any]:
    """Return the same as ``read_header`` of the first bytes of a file."""
    length = int.from_bytes(data[:8], "little")
    told = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(HEADER, "{}"))
    if not isinstance(told, dict):
        raise ValueError(f"expected a JSON object as {HEADER}, found {told!r}")
    return told


def _require_weights(data: bytes, path: Path) -> None:
    """Raise ``CheckpointError`` for what is often found in place of weights, by its name."""
    start = data[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a pointer of Git LFS in place of the weights; fetch them with `git lfs pull`")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: a web page in place of weights; the download was answered with it, try again")
    if not data.startswith(b"PK") or not zipfile.is_zipfile(io.BytesIO(data)):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path}: a TorchScript program, which is not run; expected a file of weights")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path}: a zip archive of other files; unpack it, and give the file of weights in it")


def _why_unread(path: Path, size: int, error: Exception) -> str:
    """Say why a file cannot be read: it holds more than tensors, or it is damaged."""
    foreign = re.search(r"(?:GLOBAL|class|type) ([\w.]+\.\w+)", str(error))
    if foreign is not None and "unsupported" in str(error).lower():
        return (
            f"{path}: holds Python objects ({foreign[1]}), which could run anything and are not read; "
            "if you trust it, have the program that wrote it save `model.state_dict()` alone"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: damaged, cut short ({size} bytes) or no file of weights ({reason}); download it again"
