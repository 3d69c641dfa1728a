# ruff: noqa: E501
"""The page of troubleshooting: the messages that people meet most, as the code has them, with what is behind each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sum_factory.pipelines.docs.errors import messages_by_error

WORDS = """# Troubleshooting

Find your message here by its words; what stands in braces is filled in. Most messages say themselves what to do: this page says what is
behind them. [Errors](reference/errors.md) has all messages, by class. A traceback is a mistake in this software: please report
it, with what stands above it.

Three commands tell most:

    labelgen status --shards labels/      # what is done, what was skipped and why
    labelgen verify --shards labels/      # what is damaged, and what mends each of it
    trainer data check mine.yaml          # what is found of human masks, and what a mask is taken for
"""


class Trouble(NamedTuple):
    """Words that one or more messages have, and what is behind these."""

    words: str
    behind: str


TROUBLES: Mapping[str, Sequence[Trouble]] = {
    "Labelling does not begin": (
        Trouble(
            "no such file or folder; check --images",
            "The shell has not filled a pattern or a variable, or the path is on another machine. Quote patterns: "
            "`--images 'photos/*.jpg'`.",
        ),
        Trouble(
            "was made of other images: ...",
            "The folder has photos that were not there when the set was begun. `--extend` adds them; name all photos of "
            "the set, not the new ones alone.",
        ),
        Trouble(
            "was made with other {kind}: ...",
            "A set holds labels of one kind: the message names the setting or the weights that differ. Give what it was "
            "begun with, or another folder.",
        ),
        Trouble(
            "its weights do not ship here",
            "`vit_b`, `vit_l` and `vit_h` name models, not files. Download SAM's file, and give its path.",
        ),
        Trouble(
            "a web page in place of weights",
            "A download that asked to log in, or failed. Look into the file: it is HTML.",
        ),
        Trouble(
            "this refiner was trained for a ... with SHA-256 ...",
            "A refiner reads embeddings, which mean something else in any other SAM. It is trained anew for each: `trainer "
            "refiner`.",
        ),
    ),
    "Labelling stops, or photos are missing": (
        Trouble(
            "none of the {count} photos that were looked for is there",
            "The photos have moved since they were labelled. `--photos-from OLD=NEW` says where they are now.",
        ),
        Trouble(
            "changed since it was labelled, or another photo",
            "The file of this name has other bytes than the one that was labelled: it was edited, resized or turned. The "
            "masks fit the old one alone.",
        ),
        Trouble(
            "not an image of a known format",
            "It costs this photo, not the run. `labelgen status` lists such photos; when they are mended, give the same "
            "command with `--retry-errors all`.",
        ),
        Trouble(
            "workers die of whatever they are given",
            "Mostly too little memory for so many copies of the model. Try `--workers 0`, which says what happens; then fewer "
            "workers.",
        ),
        Trouble(
            "cannot join the Ray cluster at {address}",
            "The address, the port, a firewall, another version of Ray, or a token that this side lacks.",
        ),
    ),
    "Human masks are refused": (
        Trouble(
            "say what is foreground",
            "The files hold more than two values, or shades, and which of them are the mask cannot be told. Look at one file: "
            "its values decide between `foreground` and `kind: label-maps`.",
        ),
        Trouble(
            "cannot be used: {kinds}",
            "The message counts what is wrong by kind, with the first of each. `skip: problems` leaves these out; more "
            "than half of a set is never left out.",
        ),
        Trouble(
            "all coordinates of its polygons lie between 0 and 1",
            "Shares of the photo's size, as YOLO has them, in a file that says COCO. Convert them to pixels.",
        ),
        Trouble(
            "no photos with masks found",
            "`trainer data check FOLDER` guesses layouts. Describe yours in a recipe: a photo and its mask have the same name, or `photo_names` and `mask_names` say how they differ.",
        ),
    ),
    "Training does not begin, or stops": (
        Trouble(
            "trains on pseudo-labels: give --shards",
            "Every method but `human-only` reads a shard set.",
        ),
        Trouble(
            "its masks were made at an input of {input_side} pixels",
            "Labels lie on the grid of the SAM that made them: `vit_micro` sees 256 pixels, SAM's own models 1024.",
        ),
        Trouble(
            "and this method is about {source}",
            "The layer that was named has maps of another source. `--set uncertainty=NAME` names one that fits, and "
            "`labelgen uncertainty` makes one.",
        ),
        Trouble(
            "no layer {name} to make maps from",
            "Kept layers are made by `labelgen run --keep-...`, in the same folder.",
        ),
        Trouble(
            "its library is not installed",
            "Trackers come as extras: `pip install 'sum-factory[wandb]'` or `[mlflow]`.",
        ),
        Trouble(
            "the gradient is {norm}",
            "The learning rate is too high, or bf16 too coarse for it. The last checkpoint is sound: begin another folder from "
            "the same recipe with a third of the rate.",
        ),
        Trouble(
            "has lost the others ({reason})",
            "One process of several died or was stopped; what it said stands above. Often memory. The same command goes on.",
        ),
        Trouble(
            "changed since training began",
            "Somebody labels or repairs the set while it is read. Wait for them, or train on a selection.",
        ),
    ),
    "Data are damaged": (
        Trouble(
            "fails its checksum",
            "A disk or a copy has flipped bits. `labelgen verify` names everything that is damaged, `labelgen repair` takes "
            "it back, and the same `labelgen run` makes it again.",
        ),
        Trouble(
            "not trained on: run `labelgen verify`",
            "A file is shorter than it was: a copy that was interrupted, or a full disk.",
        ),
        Trouble("this software reads {FORMAT_VERSION}", "The set was made by another version. Read it with that one."),
    ),
}


def troubleshooting_page() -> str:
    """Return the page in Markdown. Raises ``LookupError`` if no message has the words of a trouble any more."""
    parts, by_error = [WORDS], messages_by_error()
    for title, troubles in TROUBLES.items():
        parts.append(f"## {title}\n")
        for trouble in troubles:
            found = sorted(set(messages_with(trouble.words, by_error)))
            if not found:
                raise LookupError(f"no message says: {trouble.words}")
            parts.append(
                "\n".join(
                    f"`` {message} `` ([{error}](reference/errors.md#{error.lower()}))\n"
                    for message, error in found[:2]
                )
            )
            parts.append(f":   {trouble.behind}\n")
    return "\n".join(parts)


def messages_with(words: str, by_error: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield the messages that have these words, with the class of the error."""
    for error, messages in by_error.items():
        for message in messages:
            if words in message:
                yield message, error
