"""The command ``trainer evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from sum_factory.shared.commands import threads_option
from sum_factory.shared.exactness import PROMPTED, Exactness, exactness_option
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_HELP
from sum_factory.trainer.evaluation.settings import SQUEEZED, FirstPrompt, Output, Protocol

if TYPE_CHECKING:
    from sum_factory.shared.sam.hq import HqOutput
    from sum_factory.trainer.evaluation.evaluation import Evaluation, ModelChoice

MOST_ROUNDS = 9

suite_option = click.option(
    "--suite", required=True, help="A YAML file of sets, or a built-in suite: paper14, further8."
)
variables_option = click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="Fills ${NAME} in the suite; NAME alone takes its value from the environment; repeatable.",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
prompted_exactness_option = exactness_option(
    "exact: all in fp32. encoder-bf16: the image encoder in bf16, which moves scores and masks a little.",
    levels=PROMPTED,
)


@click.command("evaluate")
@click.option(
    "--weights",
    "weights",
    multiple=True,
    metavar="[NAME=]PATH",
    default=[PACKAGED],
    show_default=True,
    help=f"Weights, and what to call them in tables; repeatable. {WEIGHTS_HELP}.",
)
@click.option(
    "--sam",
    "sams",
    multiple=True,
    metavar="[NAME=]PATH",
    help="The SAM that weights of a variant sit on, of one model or of all  [default: where it lay in training]",
)
@click.option(
    "--hq-output",
    "hq_outputs",
    multiple=True,
    metavar="[NAME=](hq|hq+sam)",
    help="Of HQ-SAM, the mask of its own token, or the sum of its logits and SAM's; of one model or of all  "
    "[default: hq]",
)
@suite_option
@click.option("--out", required=True, help="Folder for rows, tables and portions: a path or a URL.")
@click.option(
    "--protocol",
    type=click.Choice(["sum", "hq-sam"]),
    default="sum",
    show_default=True,
    help="sum: clicks at the photo's size. hq-sam: that of HQ-SAM's training script, one box in the squeezed photo.",
)
@click.option(
    "--first",
    type=click.Choice([name for name in get_args(FirstPrompt) if name != SQUEEZED]),
    multiple=True,
    help="First prompt of a mask; repeatable  [default: point]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, MOST_ROUNDS),
    default=None,
    help="Rounds per mask: the first prompt, then a click per round where the mask is wrong  "
    f"[default: {Protocol.rounds}]",
)
@click.option(
    "--output",
    "outputs",
    type=click.Choice(get_args(Output)),
    multiple=True,
    help="Output of a first point that counts: oracle, of its three the closest to the target; or single; repeatable  "
    "[default: oracle]. With --protocol hq-sam: hq, hq+sam or single, SAM's own  [default: hq]",
)
@click.option(
    "--task-prompt",
    type=click.Choice(["first", "all"]),
    default="first",
    show_default=True,
    help="The rounds in which the task is given.",
)
@variables_option
@click.option(
    "--show", type=click.IntRange(1, MOST_ROUNDS), multiple=True, help="Rounds in the table  [default: 1, 3, 5, last]"
)
@click.option(
    "--max-masks", type=click.IntRange(min=1), default=None, help="Masks of an image, at most, drawn at random."
)
@click.option("--seed", default=0, show_default=True, help="Number that the draw of --max-masks follows from.")
@click.option("--automatic", is_flag=True, help="Make automatic masks, too, before and after training, and judge them.")
@click.option(
    "--before", default=None, help=f"With --automatic, the SAM that training began with  [default: {PACKAGED}]"
)
@click.option(
    "--published",
    multiple=True,
    metavar="[NAME=]COLUMN",
    help='Published figures beside a model, or beside all, such as sum="SUM FT-Medium"; repeatable  [default: those of '
    "the model's name; with --protocol hq-sam, HQ-SAM's and PA-SAM's]",
)
@device_option
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of this machine that share the photos, each with a GPU or a share of the cores.",
)
@threads_option
@prompted_exactness_option
def evaluate_command(
    weights: tuple[str, ...],
    sams: tuple[str, ...],
    hq_outputs: tuple[str, ...],
    suite: str,
    out: str,
    protocol: str,
    first: tuple[FirstPrompt, ...],
    rounds: int | None,
    outputs: tuple[Output, ...],
    task_prompt: str,
    variables: tuple[str, ...],
    show: tuple[int, ...],
    max_masks: int | None,
    seed: int,
    automatic: bool,
    before: str | None,
    published: tuple[str, ...],
    device: str,
    processes: int,
    threads: int | None,
    exactness: Exactness,
) -> None:
    """Prompt models as a user would, on sets of human masks, and average IoU and boundary IoU.

    Run it again after any interruption: it goes on where it was.
    """
    if before is not None and not automatic:
        raise click.BadParameter("is for --automatic; give that, too", param_hint="--before")
    protocols = _protocols(protocol, first, rounds, outputs, task_prompt)
    if show and max(show) > protocols[0].rounds:
        raise click.BadParameter(f"{max(show)} is beyond the last round, {protocols[0].rounds}", param_hint="--show")
    from sum_factory.trainer.evaluation.evaluation import Evaluation, evaluate_on_ranks
    from sum_factory.trainer.evaluation.suites import read_suite
    from sum_factory.trainer.settings import parse_variables

    models = _models(weights, sams, hq_outputs, protocols[0])
    evaluation = Evaluation(
        models,
        read_suite(suite, parse_variables(variables)).sets,
        protocols,
        out,
        max_masks,
        seed,
        exactness,
        device,
        tuple(sorted(set(show))) or None,
        _comparisons(published, list(models), protocols[0]),
    )
    if automatic and "before" in models:
        raise click.BadParameter("--automatic calls that of --before so; give another name", param_hint="--weights")
    told = evaluate_on_ranks(evaluation, processes, threads)
    click.echo(told, nl=False)
    if automatic and told:  # the first rank's
        click.echo("\n" + _judge_automatic(evaluation, before), nl=False)


def _judge_automatic(evaluation: Evaluation, before: str | None) -> str:
    """Write what automatic masks of the models are worth beside those of ``before``; return the text for people."""
    from sum_factory.shared.exactness import LEVELS
    from sum_factory.shared.sam.runtime import Runtime
    from sum_factory.shared.store.storage import Storage
    from sum_factory.trainer.evaluation.automatic import compare_automatic
    from sum_factory.trainer.evaluation.automatic_report import write_automatic

    models = {name: (model.weights, model.sam) for name, model in evaluation.models.items()}
    scores = compare_automatic(before, models, evaluation.sets, Runtime(evaluation.device, evaluation.exactness))
    paths = {"before": before or PACKAGED, **{name: model.weights for name, model in evaluation.models.items()}}
    return write_automatic(
        Storage(evaluation.out), scores, {"weights": paths, **LEVELS[evaluation.exactness].settings()}
    )


def _protocols(
    kind: str, first: tuple[FirstPrompt, ...], rounds: int | None, outputs: tuple[Output, ...], task_prompt: str
) -> tuple[Protocol, ...]:
    """Return the protocols that options ask for: a first point with each output, a box, which has one, with the first.

    Raises ``click.UsageError`` for those that do not go together.
    """
    asked = tuple(dict.fromkeys(outputs))
    if kind == "hq-sam":
        if first or rounds not in (None, 1):
            raise click.UsageError("--protocol hq-sam has a box as its only prompt; leave --first and --rounds out")
        if "oracle" in asked or len(asked) > 1:
            raise click.BadParameter("--protocol hq-sam has one output: hq, hq+sam or single", param_hint="--output")
        return (Protocol(SQUEEZED, 1, (*asked, "hq")[0]),)
    for output in asked:
        if output not in ("oracle", "single"):
            raise click.BadParameter(
                f"{output} is for --protocol hq-sam; otherwise --hq-output {output} --output single",
                param_hint="--output",
            )
    count = rounds or Protocol.rounds
    names: tuple[FirstPrompt, ...] = first or ("point",)
    task_rounds = 1 if task_prompt == "first" else count
    counted = asked or (Protocol.output,)
    return tuple(
        Protocol(name, count, output, task_rounds)
        for name in dict.fromkeys(names)
        for output in (counted[:1] if name == "box" else counted)
    )


def _models(
    weights: tuple[str, ...], sams: tuple[str, ...], hq_outputs: tuple[str, ...], protocol: Protocol
) -> dict[str, ModelChoice]:
    """Return the models that options name, in their order. Raises ``click.BadParameter`` for odd names."""
    from sum_factory.trainer.evaluation.evaluation import ModelChoice

    paths = [_named(text) for text in weights]
    names = [name or Path(path.rstrip("/")).stem for name, path in paths]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"several are called {name!r}; give NAME=PATH", param_hint="--weights")
    below, put_out = _of_models(sams, names, "--sam"), _of_models(hq_outputs, names, "--hq-output")
    for text in put_out.values():
        if text not in ("hq", "hq+sam"):
            raise click.BadParameter(f"expected hq or hq+sam, found {text!r}", param_hint="--hq-output")
    squeezed = protocol.first == SQUEEZED
    if squeezed and put_out:
        raise click.UsageError("--protocol hq-sam takes --output in place of --hq-output")
    return {
        name: ModelChoice(
            path, below.get(name), cast("HqOutput", protocol.output if squeezed else put_out.get(name, "hq"))
        )
        for name, (_, path) in zip(names, paths, strict=True)
    }


def _comparisons(texts: tuple[str, ...], names: list[str], protocol: Protocol) -> dict[str, list[str]]:
    """Return the published columns beside each model. Raises ``click.BadParameter`` for one that there is not."""
    from sum_factory.trainer.evaluation.published import HQ_SAM_COLUMNS, column_of, columns

    if not texts:
        default = HQ_SAM_COLUMNS if protocol.first == SQUEEZED else ()
        return {name: list(default) or [found for found in [column_of(name)] if found] for name in names}
    chosen: dict[str, list[str]] = {}
    for text in texts:
        for name, asked in _of_models((text,), names, "--published").items():
            column = column_of(asked)
            if column is None:
                raise click.BadParameter(f"{asked!r} is none of {', '.join(columns())}", param_hint="--published")
            chosen.setdefault(name, []).append(column)
    return chosen


def _named(text: str) -> tuple[str | None, str]:
    """Return name and value of NAME=VALUE; a name has no slash, so that paths may have a "="."""
    name, equals, value = text.partition("=")
    return (name, value) if equals and name and "/" not in name and not Path(text).exists() else (None, text)


def _of_models(texts: tuple[str, ...], names: list[str], option: str) -> dict[str, str]:
    """Return the values of an option by model; one without a name is for all."""
    found: dict[str, str] = {}
    for name, value in map(_named, texts):
        if name is not None and name not in names:
            raise click.BadParameter(
                f"no --weights is called {name!r}; there are {', '.join(names)}", param_hint=option
            )
        found.update(dict.fromkeys([name] if name is not None else names, value))
    return found
