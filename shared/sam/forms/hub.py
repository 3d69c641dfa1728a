"""Weights on the Hugging Face hub, fetched by ``huggingface_hub`` into its own cache, once."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.forms.reading import CONFIG, INDEX, NAMES_IN_FOLDERS

SCHEME = "hf://"
FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
"""Endings of names that are files here, and no ids on the hub."""
ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.][\w./-]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(weights: str) -> bool:
    """Whether ``weights`` names a repository on the hub: ``hf://owner/name``, or ``owner/name`` if none is here.

    Behind either, ``@`` and a revision may stand. What begins with a folder of this machine is a path.
    """
    if weights.startswith(SCHEME):
        return True
    first = Path(weights.partition("/")[0])
    return ID.fullmatch(weights) is not None and not weights.endswith(FILES) and not first.exists()


def fetch(weights: str) -> Path:
    """Return the folder with the weights of a repository, which is fetched unless it is in the cache.

    All files are of one commit. Raises ``CheckpointError`` if there is no such repository, if it holds no weights of a
    model that is read here, or if the hub cannot be reached.
    """
    matched = ID.fullmatch(weights.removeprefix(SCHEME))
    if matched is None:
        raise CheckpointError(f"{weights}: no id on the Hugging Face hub; expected owner/name or owner/name@revision")
    repository, revision = matched["repository"], matched["revision"]
    config = _download(weights, repository, CONFIG, revision)
    if config is not None and COMMIT.fullmatch(config.parent.name):
        revision = config.parent.name
    for name in NAMES_IN_FOLDERS[1:]:
        found = _download(weights, repository, name, revision)
        if found is not None:
            return found.parent
        index = _download(weights, repository, name + INDEX, revision)
        if index is not None:
            for named in _named_files(index):
                _download(weights, repository, named, revision)
            return index.parent
    raise CheckpointError(
        f"{weights}: neither a file or folder here, nor a model on the Hugging Face hub with weights in "
        f"{' or '.join(NAMES_IN_FOLDERS[1:])}; without a connection, only what is in its cache is found"
    )


def _named_files(index: Path) -> list[str]:
    """Return the names of the files that an index names; what is wrong with it is told when the folder is read."""
    try:
        return sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _download(weights: str, repository: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a repository, or None if it has no such file (or, without a connection, the cache has not)."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise CheckpointError(
            f"{weights}: no such file or folder; to fetch weights from the Hugging Face hub, install the extra `hub` "
            "(pip install 'sum-factory[hub]')"
        ) from error
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except errors.EntryNotFoundError:
        return None
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{weights}: no such file or folder here, and no such model on the Hugging Face hub, or none that may be "
            "read: check the name and, for a gated model, log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{weights}: the model has no revision {revision}; check its name") from error
    except Exception as error:  # of its HTTP client, of the connection, of the disk: whichever library it is made of
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{weights}: could not be fetched from the Hugging Face hub ({reason})") from error
