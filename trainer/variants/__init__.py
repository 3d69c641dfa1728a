"""Variants, one a module: a new variant is a new module with a ``VARIANT``, and nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch
from torch import nn

from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.variants.variant import Variant


@cache
def variants() -> Mapping[str, Variant]:
    """Return all variants, by their name."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    found: list[Variant] = [module.VARIANT for module in modules if hasattr(module, "VARIANT")]
    return {variant.name: variant for variant in sorted(found, key=lambda variant: variant.name)}


def prepare(sam: Sam, name: str, settings: Any, seed: int) -> None:
    """Make ``sam`` the variant of that name, in place; what it adds is drawn from ``seed``, on any device alike.

    Call it before ``sam`` goes to its device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        variants()[name].prepare(sam, settings)


def trainable(sam: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by their names."""
    return {name: parameter for name, parameter in sam.named_parameters() if parameter.requires_grad}
