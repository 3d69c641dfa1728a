"""The commands that look at a shard set and mend it: ``labelgen status``, ``verify``, ``repair`` and ``gc``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from sum_factory.labelgen.options import shards_option
from sum_factory.shared.commands import FAILED
from sum_factory.shared.shards.dataset import LEAST_AGE

TAKEN_BACK = 3


@click.command("status")
@shards_option
def status_command(shards: str) -> None:
    """Say how much of a shard set is done, layer by layer, and which images were skipped."""
    from sum_factory.labelgen.sets.status import status_of
    from sum_factory.shared.shards.selection.opened import open_shards

    opened = open_shards(shards)
    for line in status_of(opened, opened.storage.url):
        click.echo(line)


@click.command("verify")
@shards_option
@click.pass_context
def verify_command(ctx: click.Context, shards: str) -> None:
    """Check counts and checksums, and that every blob decodes. Exit status 1 if anything is wrong."""
    from sum_factory.shared.shards.kinds import kind_of
    from sum_factory.shared.shards.selection.opened import open_shards
    from sum_factory.shared.shards.verify import verify

    shard_set = open_shards(shards)
    checks = list(verify(shard_set))
    problems = [problem for check in checks for problem in check.problems]
    for problem in problems:
        click.echo(f"problem: {problem}")
    for layer in shard_set.dataset.layers:
        sound = [check.record for check in checks if check.record is not None and check.layer == layer]
        missing = shard_set.unit_count - len(shard_set.committed(layer))
        click.echo(
            f"layer {layer}: {len(sound)} units sound with {sum(r.masks for r in sound)} {kind_of(layer).counted}, "
            f"{missing} units not made yet"
        )
    click.echo(f"{len(problems)} problems")
    if problems:
        ctx.exit(FAILED)


@click.command("repair")
@shards_option
@click.option("--dry-run", is_flag=True, help="Only say what would be taken back.")
@click.pass_context
def repair_command(ctx: click.Context, shards: str, dry_run: bool) -> None:
    """Take back the units that `verify` finds broken, so that the same command makes them again.

    Their files are moved to the folder `quarantine` of the shard set. Exit status 0 if the shard set is sound, 3 if all
    that was wrong is taken back, 1 if something is left.
    """
    from sum_factory.labelgen.sets.repair import diagnose, take_back
    from sum_factory.shared.shards.shard_set import ShardSet

    shard_set = ShardSet.open(shards)
    diagnosis = diagnose(shard_set)
    for broken in diagnosis.broken:
        for problem in broken.problems:
            click.echo(f"{'would take' if dry_run else 'taking'} back {broken.name}: {problem}")
    for problem in diagnosis.left:
        click.echo(f"left: {problem}")
    if diagnosis.broken:
        outcome = "nothing was changed" if dry_run else f"moved to {take_back(shard_set.storage, diagnosis.broken)}"
        click.echo(f"{len(diagnosis.broken)} broken, {outcome}; to make them again: the same {diagnosis.commands()}")
    elif not diagnosis.left:
        click.echo("sound, nothing to take back")
    if diagnosis.left:
        ctx.exit(FAILED)
    if diagnosis.broken:
        ctx.exit(TAKEN_BACK)


@click.command("gc")
@shards_option
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=LEAST_AGE / timedelta(hours=1),
    help="Hours since a file was written; what is younger may belong to a run that is still at work.",
)
@click.option("--dry-run", is_flag=True, help="Only name what would be removed.")
def gc_command(shards: str, older_than: float, dry_run: bool) -> None:
    """Remove what runs that died have left: temporary files, and data without a manifest. Nothing else is touched."""
    from sum_factory.shared.shards.collect import left_overs, remove
    from sum_factory.shared.shards.selection.opened import open_shards

    shard_set = open_shards(shards)
    limit = datetime.now(UTC) - timedelta(hours=older_than)
    removed = size = younger = 0
    for left in left_overs(shard_set):
        if left.modified > limit:
            younger += 1
        elif dry_run or remove(shard_set.storage, left):
            click.echo(f"{'would remove' if dry_run else 'removed'} {left.name}: {left.kind}, {left.size} bytes")
            removed, size = removed + 1, size + left.size
    click.echo(f"{removed} files, {size} bytes {'would be removed' if dry_run else 'removed'}")
    if younger:
        click.echo(f"{younger} files younger than {older_than:g} h were left: a run may be at work on them")
