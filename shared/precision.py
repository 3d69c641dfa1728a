"""What models compute in: fp32, or bf16 by autocast. Whether ``auto`` is one or the other is decided here alone.

``auto`` is bf16 where the device has instructions for bfloat16, and fp32 everywhere else: emulated, bfloat16 is many
times slower than fp32. Of a processor that has them, a second's measurement tells whether they are fast: there are some
whose AVX512-BF16 takes nearly twice as long as fp32. What it came to is what goes into records, never "auto".

Nothing here needs torch before a device is asked, so that options and settings can be read without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from sum_factory.shared.errors import SettingsDifferError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
"""What is computed in."""
PrecisionSetting = Literal["auto", "fp32", "bf16"]
"""What is asked for."""

X86_WITHOUT_BF16 = ("DEFAULT", "NO AVX", "AVX2")
"""What ATen calls the instructions that it uses on x86, where they are none for bfloat16."""
ISAS_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ``ONEDNN_MAX_CPU_ISA`` that keep oneDNN from computing in bfloat16; it goes without case."""
LIMITS_OF_ONEDNN = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""The variable's name, and its old one, which counts if the first is not there."""
NATIVE = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "sve_bf16": "SVE-BF16", "bf16": "Arm's BF16"}
"""Instructions that multiply in bfloat16, by what torch calls them."""
TOLD = "SUM_FACTORY_TOLD_OF_EMULATION"
"""Variable of the environment, inherited by the processes that this one starts: one command says it once."""

FACTOR = "SUM_FACTORY_BF16_FACTOR"
"""Variable of the environment, inherited likewise: how many times as long as fp32 a processor's own bf16 takes."""
WORTH_IT = 0.9
"""The factor above which ``auto`` leaves a processor's bf16 alone: what is left to gain would be lost in casts."""


def precision_option(
    default: PrecisionSetting | None, help_: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option ``--precision`` of a command; without a default it is None if it is not given."""
    return click.option("--precision", type=click.Choice(get_args(PrecisionSetting)), default=default, help=help_)


@dataclass(frozen=True)
class Hardware:
    """Whether a device has fast instructions for bfloat16, and what to call it in "auto is fp32 on ..."."""

    has_bf16: bool
    described: str


@dataclass(frozen=True)
class Resolved:
    """What ``asked`` is on a device: ``name``, and the reason for it. Made once, where a run begins."""

    asked: PrecisionSetting
    name: Precision
    reason: str

    def require_recorded(self, place: str, recorded: object, option: str = "--precision {0}") -> None:
        """Refuse to go on with what was begun in another precision. Raises ``SettingsDifferError``.

        ``recorded`` is what ``place`` says that it was; ``option`` is what asks for it.
        """
        if recorded in get_args(Precision) and recorded != self.name:
            raise SettingsDifferError(
                f"{place}: precision: there {recorded}, here it would be {self.name} ({self.reason}). "
                f"Give {option.format(recorded)} to go on with it, or another folder for another precision."
            )


def resolve(asked: PrecisionSetting, device: torch.device) -> Resolved:
    """Return what ``asked`` is on ``device``, which is looked at for "auto" alone."""
    if asked != "auto":
        return Resolved(asked, asked, f"{asked} is asked for")
    hardware = hardware_of(device)
    name: Precision = "bf16" if hardware.has_bf16 else "fp32"
    return Resolved(asked, name, f"auto is {name} on {hardware.described}")


def settle(asked: PrecisionSetting, device: torch.device) -> Resolved:
    """Return what ``asked`` is on ``device``, at the start of a run: says what it costs if it has to be emulated."""
    resolved = resolve(asked, device)
    warn_if_emulated(resolved, device)
    return resolved


def hardware_of(device: torch.device) -> Hardware:
    """Ask torch whether ``device`` has instructions for bfloat16 that no variable of the environment forbids; of a CPU
    that has them, measure once whether they are fast."""
    if device.type == "cuda":
        return _cuda(device)
    if device.type == "cpu":
        return _processor()
    return Hardware(False, f"the device {device}, which cannot be asked for bfloat16")


def _cuda(device: torch.device) -> Hardware:
    import torch

    if not torch.cuda.is_available():
        return Hardware(False, f"the device {device}, which is not there")
    with torch.cuda.device(device):
        has = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    called = f"{device} ({torch.cuda.get_device_name(device)})"
    return Hardware(has, f"{called}, which has {'' if has else 'no '}instructions for bfloat16")


def _processor() -> Hardware:
    import torch

    capabilities = torch.cpu.get_capabilities()
    native = [name for flag, name in NATIVE.items() if capabilities.get(flag, False)]
    if not native:
        return Hardware(False, "this processor, which has no instructions for bfloat16")
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Hardware(False, f"this processor: it has {native[0]}, but this torch has no oneDNN, which uses it")
    limit = _limit(torch.backends.cpu.get_cpu_capability(), str(capabilities.get("architecture", "")))
    if limit is not None:
        return Hardware(False, f"this processor: it has {native[0]}, but {limit} keeps it from being used")
    factor = _factor_of_bf16()
    if factor > WORTH_IT:
        return Hardware(False, f"this processor: its {native[0]} takes {factor:.1f} times as long as fp32")
    return Hardware(True, f"this processor, which has {native[0]}")


def _factor_of_bf16() -> float:
    """Measure this processor once per command: all its processes are to decide alike."""
    import torch

    if not os.environ.get(FACTOR):
        os.environ[FACTOR] = f"{measure_slowdown(torch.device('cpu')):.2f}"
    return float(os.environ[FACTOR])


def _limit(capability: str, architecture: str) -> str | None:
    """Return which variable of the environment holds an x86 processor to instructions without bfloat16, if any."""
    if not architecture.startswith("x86"):
        return None
    name = next((name for name in LIMITS_OF_ONEDNN if os.environ.get(name)), None)
    if name is not None and os.environ[name].upper() in ISAS_WITHOUT_BF16:
        return f"{name}={os.environ[name]}"
    return f"ATEN_CPU_CAPABILITY={capability.lower()}" if capability in X86_WITHOUT_BF16 else None


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the dtype of what is computed outside of a context of ``autocast``."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device_type: str, precision: Precision) -> torch.autocast:
    """Return the context in which a model computes in ``precision``; fp32 also switches an outer bf16 off."""
    import torch

    return torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16")


def warn_if_emulated(resolved: Resolved, device: torch.device) -> None:
    """Say on standard error, once a command, what bf16 costs where it was asked for and has to be emulated."""
    if resolved.asked == "bf16":
        tell_if_emulated("bf16", device, "precision auto or fp32")


def tell_if_emulated(asked: str, device: torch.device, remedy: str) -> None:
    """Say what bf16 costs on ``device`` if it has to be emulated, once a command: ``asked`` takes it, ``remedy`` does
    without."""
    hardware = hardware_of(device) if not os.environ.get(TOLD) else None
    if hardware is None or hardware.has_bf16:
        return
    os.environ[TOLD] = "1"
    factor = measure_slowdown(device)
    click.echo(
        f"{asked} is asked for on {hardware.described}: a linear layer takes {factor:.1f} times as long as in fp32"
        + (f"; {remedy} does without" if factor > 1 else ""),
        err=True,
    )


def measure_slowdown(device: torch.device, seconds: float = 0.4) -> float:
    """Return how many times as long a linear layer of an image encoder takes in bf16 as in fp32, in about a second.

    Draws no random numbers: those of a run that goes on are to be the same with and without.
    """
    import torch

    tokens = torch.linspace(-1, 1, 1024 * 256, device=device).view(1024, 256)
    layer = torch.nn.Linear(256, 1024, device="meta").to_empty(device=device)
    torch.nn.init.constant_(layer.weight, 0.01)
    torch.nn.init.zeros_(layer.bias)

    def time_of(precision: Precision) -> float:
        times: list[float] = []
        begun = time.perf_counter()
        while len(times) < 3 or (len(times) < 50 and time.perf_counter() - begun < seconds):
            started = time.perf_counter()
            with torch.no_grad(), autocast(device.type, precision):
                layer(tokens).sum().item()  # waits for the device
            times.append(time.perf_counter() - started)
        return min(times)

    fp32 = time_of("fp32")
    return time_of("bf16") / fp32
