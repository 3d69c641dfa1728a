"""Errors that tell a user what is wrong, where, and what to do. Every one derives from ``SumError``."""

from __future__ import annotations


class SumError(Exception):
    """Base of all errors that are the input's fault, or the environment's; the command line prints them plainly."""


class ImageError(SumError):
    """An image cannot be read or used; labelling records it and goes on."""


class SourceError(SumError):
    """A source of images is missing, empty or contradicts itself."""


class UnreachableError(SumError):
    """A store of photos does not answer, or not to us: nothing is known of the photos in it."""


class CheckpointError(SumError):
    """A file of weights is damaged, or does not fit the model that was asked for."""


class ShardError(SumError):
    """A shard set is missing, damaged or of another version."""


class SettingsDifferError(ShardError):
    """A shard set exists and was made with other settings."""


class SettingsError(SumError):
    """A recipe, a suite or an option is wrong."""


class StorageError(SumError):
    """A file cannot be written: no permission, no space, no such bucket."""


class DivergedError(SumError):
    """The loss of a training step is infinite or not a number: lower the learning rate, or compute in fp32."""


class WorkerError(SumError):
    """A unit of work failed more often than is allowed."""
