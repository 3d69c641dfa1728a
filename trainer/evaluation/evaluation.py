"""``trainer evaluate``: several models in one pass over the sets, in portions that outlast a kill.

A portion is the scores of a few photos of one set, of all models, and is written when it is done. A run that is started
again does what is missing. Tables are made of the portions, in their order, so they do not depend on who made them
when.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic_core import to_jsonable_python

from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import StorageError
from sum_factory.shared.exactness import LEVELS, Exactness, settle
from sum_factory.shared.progress import SPEAKER, Stage
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.hq import HqMaskDecoder, HqOutput
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.store.canonical_json import content_id, to_json
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.sets import SetSettings, open_set
from sum_factory.trainer.evaluation.embeddings import Embeddings
from sum_factory.trainer.evaluation.plots import draw_rounds
from sum_factory.trainer.evaluation.report import Results, write_rows, write_summary
from sum_factory.trainer.evaluation.run import (
    KEPT_BYTES,
    MODEL_SCORES,
    PhotoScores,
    evaluate_photo,
    load_weights,
    prompted_task,
    set_scores,
)
from sum_factory.trainer.evaluation.settings import SQUEEZED, Protocol
from sum_factory.trainer.evaluation.tables import Comparisons, make_lines, to_csv, to_latex, to_markdown
from sum_factory.trainer.run.distributed import Ranks, join_ranks, run_on_ranks

PORTION_PHOTOS = 8
"""Photos of a portion, at most."""
RECORD_FILE, PORTIONS, TABLES = "evaluation.json", "portions", "tables"
REMEDY = "Give what it was begun with, or another --out."


@dataclass(frozen=True)
class ModelChoice:
    """A model to evaluate: where its weights are, the SAM that they sit on, and of HQ-SAM what it puts out."""

    weights: str
    sam: str | None = None
    hq_output: HqOutput = "hq"


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, how, and where it is written to; ``models`` by name."""

    models: Mapping[str, ModelChoice]
    sets: tuple[SetSettings, ...]
    protocols: tuple[Protocol, ...]
    out: str
    max_masks: int | None = None
    seed: int = 0
    exactness: Exactness = "exact"
    device: str = "auto"
    shown: tuple[int, ...] | None = None
    """Rounds in the tables."""
    comparisons: Comparisons = field(default_factory=dict)
    """The published columns beside each model."""


@dataclass(frozen=True)
class _Portion:
    """Photos ``start`` to ``stop`` of the set of this number."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.number:03}-{self.start:07}.parquet"


def evaluate(evaluation: Evaluation) -> str:
    """Evaluate what is not done yet, together with the processes that ``torchrun`` or ``run_on_ranks`` started; then
    the first one writes the report. Returns its text, of the other processes nothing.

    Raises ``SettingsDifferError`` if there is an evaluation with other settings, and ``SumError`` for what cannot be
    used.
    """
    tune_malloc()
    with join_ranks(evaluation.device) as ranks:
        run = _Run(evaluation, ranks)
        run.agree()
        run.do_missing()
        ranks.wait()
        return run.report() if ranks.leads else ""


def evaluate_on_ranks(evaluation: Evaluation, processes: int = 1, threads: int | None = None) -> str:
    """Evaluate in so many processes of this machine, each on a device or on a share of ``threads`` cores, by default
    all that this process may use; one that ``torchrun`` started starts no others. Returns the text of the report."""
    cores = threads or usable_cores()
    if processes == 1:
        if threads is not None or "WORLD_SIZE" not in os.environ:
            torch.set_num_threads(cores)
        return evaluate(evaluation)
    return str(run_on_ranks(evaluate, (evaluation,), processes, cores))


@dataclass
class _Run:
    evaluation: Evaluation
    ranks: Ranks

    def __post_init__(self) -> None:
        self.folder = Storage(self.evaluation.out)
        settle(self.evaluation.exactness, self.ranks.device)
        runtime = Runtime(str(self.ranks.device), self.evaluation.exactness)
        squeezed = any(protocol.first == SQUEEZED for protocol in self.evaluation.protocols)
        self.models = {name: _load(choice, runtime, squeezed) for name, choice in self.evaluation.models.items()}
        keys = [open_set(settings).keys for settings in self.evaluation.sets]
        self.counts, self.photos = [len(each) for each in keys], [content_id(each) for each in keys]

    @cached_property
    def portions(self) -> list[_Portion]:
        return [
            _Portion(number, start, min(start + PORTION_PHOTOS, count))
            for number, count in enumerate(self.counts)
            for start in range(0, count, PORTION_PHOTOS)
        ]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What every portion depends on."""
        models = {
            name: {"sha256": each.sha256, "trained_tasks": list(each.trained_tasks), "hq_output": _hq_output(each)}
            for name, each in self.models.items()
        }
        sets = {
            settings.name: {"photos": photos, **to_jsonable_python(asdict(settings))}
            for settings, photos in zip(self.evaluation.sets, self.photos, strict=True)
        }
        return {
            "models": models,
            "order of models": list(models),
            "sets": sets,
            "order of sets": list(sets),
            "protocols": [asdict(protocol) for protocol in self.evaluation.protocols],
            "max_masks": self.evaluation.max_masks,
            "seed": self.evaluation.seed,
            **LEVELS[self.evaluation.exactness].settings(),
            "kind of device": self.ranks.device.type,
        }

    def agree(self) -> None:
        """Record what is evaluated, or find that it is what was recorded. Raises ``SettingsDifferError``."""
        if self.ranks.leads:
            self.folder.make()
            self.folder.create(RECORD_FILE, to_json(self.settings))
        self.ranks.wait()
        recorded = json.loads(self.folder.read(RECORD_FILE))
        place = self.folder.path(RECORD_FILE)
        require_same("settings", place, _flat(recorded), _flat(self.settings), REMEDY)

    def do_missing(self) -> None:
        """Evaluate this process's share of the portions that are missing, set by set."""
        there = set(self.ranks.gather(self.folder.names(PORTIONS))[0])
        if there:
            SPEAKER.say(f"{len(there):,} of {len(self.portions):,} portions are there already; the others follow")
        missing = [portion for portion in self.portions if portion.name not in there]
        limit = KEPT_BYTES if len(self.counts) > 1 else 0
        embeddings = Embeddings(self.models, LEVELS[self.evaluation.exactness].encoder, limit)
        for number, settings in enumerate(self.evaluation.sets):
            own = [portion for portion in missing if portion.number == number][self.ranks.rank :: self.ranks.count]
            if own:
                opened = open_set(settings)
                count = sum(portion.stop - portion.start for portion in own)
                with Stage(f"evaluating {settings.name}", count, "image") as stage:
                    for portion in own:
                        self._do(portion, embeddings, settings, opened, stage)

    def _do(
        self, portion: _Portion, embeddings: Embeddings, settings: SetSettings, opened: HumanSet, stage: Stage
    ) -> None:
        chosen, photos = self.evaluation, []
        for index in range(portion.start, portion.stop):
            scores = evaluate_photo(
                embeddings, settings, opened, index, chosen.protocols, chosen.max_masks, chosen.seed
            )
            photos.append(scores)
            stage.advance()
        counts = {name: str(sum(getattr(each, name) for each in photos)) for name in ("images", "masks", "empty")}
        rows = pa.concat_tables([each.rows for each in photos]).replace_schema_metadata(counts)
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        self.folder.write(f"{PORTIONS}/{portion.name}", buffer.getvalue())

    def _read(self, portion: _Portion) -> PhotoScores:
        name = f"{PORTIONS}/{portion.name}"
        try:
            rows = pq.read_table(io.BytesIO(self.folder.read(name)))
            counts = {key.decode(): int(value) for key, value in rows.schema.metadata.items()}
            return PhotoScores(rows.select(MODEL_SCORES.names).replace_schema_metadata(None), **counts)
        except (FileNotFoundError, pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(
                f"{self.folder.path(name)}: missing, or no portion of an evaluation; delete it and give the same "
                "command again"
            ) from error

    def results(self) -> Results:
        """Return the scores of each model on each set."""
        found: Results = {name: [] for name in self.models}
        for number, settings in enumerate(self.evaluation.sets):
            photos = [self._read(portion) for portion in self.portions if portion.number == number]
            for name, model in self.models.items():
                own = [_of_model(each, name) for each in photos]
                found[name].append(set_scores(settings, prompted_task(model, settings.task), own))
        return found

    def report(self) -> str:
        """Write rows, summary and tables; return the text."""
        results, shown = self.results(), self.evaluation.shown
        provenance = self._provenance()
        write_rows(self.folder, results, provenance)
        self._write_tables(results)
        return write_summary(self.folder, results, provenance, shown, self._remark())

    def _write_tables(self, results: Results) -> None:
        comparisons = self.evaluation.comparisons
        lines = make_lines(results, comparisons, self.evaluation.shown)
        for kind, written in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
            self.folder.write(f"{TABLES}.{kind}", written(lines, comparisons).encode())
        for name, picture in draw_rounds(results):
            self.folder.write(name, picture)

    def _provenance(self) -> dict[str, Any]:
        models = {
            name: {
                "weights": {
                    "path": self.evaluation.models[name].weights,
                    "sha256": model.sha256,
                    "model_type": model.architecture.name,
                },
                "trained_tasks": model.trained_tasks,
                "hq_output": _hq_output(model),
            }
            for name, model in self.models.items()
        }
        (alone, *others) = models.values()
        return {
            **({"models": models} if others else alone),
            "suite": to_jsonable_python([asdict(settings) for settings in self.evaluation.sets]),
            "protocols": [asdict(protocol) for protocol in self.evaluation.protocols],
            "max_masks": self.evaluation.max_masks,
            "seed": self.evaluation.seed,
            **LEVELS[self.evaluation.exactness].settings(),
        }

    def _remark(self) -> str:
        """Return what a reader of HQ-SAM's protocol has to know of models that are none."""
        outputs = {each.output for each in self.evaluation.protocols if each.first == SQUEEZED} - {"single"}
        plain = [name for name, model in self.models.items() if _hq_output(model) is None]
        return f"\n- no HQ-SAM, their single-mask output is judged: {', '.join(plain)}\n" if outputs and plain else ""


def _load(choice: ModelChoice, runtime: Runtime, squeezed: bool) -> LoadedSam:
    """Load a model and have it put out what is asked for. In HQ-SAM's protocol, what is no HQ-SAM puts out what it has.

    Raises ``SettingsError`` for an output that it does not have in another protocol.
    """
    loaded = load_weights(choice.weights, runtime, choice.sam, "hq" if squeezed else choice.hq_output)
    if isinstance(loaded.sam.mask_decoder, HqMaskDecoder):
        loaded.sam.mask_decoder.hq_output = choice.hq_output
    return loaded


def _hq_output(model: LoadedSam) -> str | None:
    decoder = model.sam.mask_decoder
    return decoder.hq_output if isinstance(decoder, HqMaskDecoder) else None


def _of_model(photos: PhotoScores, name: str) -> PhotoScores:
    rows = photos.rows.filter(pc.equal(photos.rows["model"], name))
    return PhotoScores(rows, photos.masks, photos.empty, photos.images)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the values within mappings and lists, by names joined by dots."""
    if isinstance(value, Mapping):
        inner: Iterator[tuple[Any, Any]] | Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        inner = list(enumerate(value))
    else:
        return {name: value}
    return {key: each for k, item in inner for key, each in _flat(item, f"{name}.{k}".lstrip(".")).items()}
