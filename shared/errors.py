"""Errors that tell a user what is wrong, where, and what to do. Every one derives from ``SumError``.

The second paragraph of each says what to do, and what exit status a command ends with.
"""

from __future__ import annotations

from sum_factory.shared.credentials import concealed
from sum_factory.shared.names import printable_lines


class SumError(Exception):
    """Base of all errors that are the input's fault, or the environment's.

    A command prints it without a traceback and ends with exit status 1. Catch it to catch all of these.
    """

    def __init__(self, *arguments: object) -> None:
        """Keep what is told, without the credentials of the URLs in it: it may come to be written down anywhere."""
        super().__init__(*(concealed(told) if isinstance(told, str) else told for told in arguments))

    def __str__(self) -> str:
        """Return the message; what a terminal would obey in the name of a file is escaped."""
        return printable_lines(super().__str__())


class ImageError(SumError):
    """A photo, a mask or a label map cannot be read, or cannot be used.

    Labelling records it in the manifest, goes on, and ends with exit status 3; any other command ends with 1. Fetch the
    file again, or leave it out.
    """


class InputError(SumError):
    """Photos or human masks are missing, there are none, or they contradict each other.

    Exit status 1, before anything is labelled or trained. Check the path; photos and masks are paired by stem.
    """


class UnreachableError(SumError):
    """A store of photos does not answer, or does not let us in, so nothing is known of the photos in it.

    Exit status 1; what is committed stays. Check credentials, address and connection, then give the same command again.
    """


class CheckpointError(SumError):
    """A file of weights is missing or damaged, or is not of the model that was asked for.

    Exit status 1. Download or train the weights again, or give those that fit; a run goes on from its last sound
    checkpoint.
    """


class ShardError(SumError):
    """A shard set or selection is missing, damaged, or made by another version.

    Exit status 1; damaged data are never used. ``labelgen verify`` names all that is damaged and what mends it, mostly
    ``labelgen repair`` and then the command that made it.
    """


class SettingsDifferError(ShardError):
    """What is there was made with other settings, other weights or other photos than those that are given now.

    Exit status 1; nothing is changed. Give the recorded settings, which the message names, or another folder.
    """


class SettingsError(SumError):
    """A recipe, a suite or an option is wrong, or options contradict each other.

    Exit status 1, before anything is done. The message names the key or option, and what it may be.
    """


class StorageError(SumError):
    """A file cannot be written or read: no permission, no space, no such bucket, no answer.

    Exit status 1; nothing is half-committed. Mend what the message names, then give the same command again.
    """


class DivergedError(SumError):
    """The gradient of a training step is infinite or not a number.

    Exit status 1, before the weights are changed: the last checkpoint is sound. Lower ``optimizer.learning_rate``, or
    compute in fp32, in another folder.
    """


class WorkerError(SumError):
    """Processes that label or train cannot be started, or die again and again.

    Exit status 1; what is committed stays. Mostly memory is short: use fewer workers or smaller batches, then give the
    same command again.
    """
