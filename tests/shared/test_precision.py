"""What ``auto`` comes to on which hardware, what is said of an emulated bf16, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from sum_factory.shared import precision
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.precision import (
    TOLD,
    Hardware,
    Precision,
    PrecisionSetting,
    Resolved,
    autocast,
    dtype_of,
    measure_slowdown,
    precision_option,
    resolve,
    settle,
    warn_if_emulated,
)

CPU = torch.device("cpu")
X86, ARM = "x86_64", "arm64"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``processor(architecture, *flags)`` makes torch see a processor with these instructions, and use them.

    Its bf16 takes ``factor`` times as long as fp32.
    """

    def pretend(
        architecture: str, *flags: str, capability: str = "AVX512", onednn: bool = True, factor: float = 0.5
    ) -> None:
        found = {"architecture": architecture, **dict.fromkeys(flags, True)}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        monkeypatch.setenv(precision.FACTOR, "")
        monkeypatch.setattr(precision, "measure_slowdown", lambda device: factor)
        for name in precision.LIMITS_OF_ONEDNN:
            monkeypatch.delenv(name, raising=False)

    return pretend


@pytest.mark.parametrize(
    ("given", "expected", "why"),
    [
        ((X86, "avx2"), "fp32", "which has no instructions for bfloat16"),
        ((X86, "avx512_f", "avx512_vnni"), "fp32", "which has no instructions for bfloat16"),
        ((X86, "avx512_f", "avx512_bf16"), "bf16", "which has AVX512-BF16"),
        ((X86, "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16"), "bf16", "which has AMX-BF16"),
        ((X86, "avx2", "avx_ne_convert"), "fp32", "which has no instructions for bfloat16"),
        ((ARM, "neon"), "fp32", "which has no instructions for bfloat16"),
        ((ARM, "neon", "bf16"), "bf16", "which has Arm's BF16"),
        ((ARM, "neon", "sve", "sve_bf16", "bf16"), "bf16", "which has SVE-BF16"),
    ],
)
def test_auto_is_bf16_where_the_processor_multiplies_in_it(
    processor: Callable[..., None], given: tuple[str, ...], expected: Precision, why: str
) -> None:
    processor(*given, capability="DEFAULT" if given[0] == ARM else "AVX512")
    assert resolve("auto", CPU) == Resolved("auto", expected, f"auto is {expected} on this processor, {why}")


@pytest.mark.parametrize(("factor", "expected"), [(0.1, "bf16"), (0.9, "bf16"), (0.91, "fp32"), (1.88, "fp32")])
def test_auto_is_fp32_where_the_processors_bf16_is_slow(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch, factor: float, expected: Precision
) -> None:
    processor(X86, "avx512_bf16", factor=factor)
    resolved = resolve("auto", CPU)
    assert resolved.name == expected
    slow = f"on this processor: its AVX512-BF16 takes {factor:.1f} times as long as fp32"
    assert resolved.reason.endswith(slow) == (expected == "fp32")
    monkeypatch.setattr(precision, "measure_slowdown", lambda device: pytest.fail("measured twice in a command"))
    assert resolve("auto", CPU) == resolved
    assert resolve("bf16", CPU).name == "bf16", "what is asked for is done"


@pytest.mark.parametrize("limit", ["AVX2", "avx2", "AVX512_CORE", "AVX512_CORE_VNNI"])
@pytest.mark.parametrize("name", precision.LIMITS_OF_ONEDNN)
def test_processor_that_is_held_to_fewer_instructions_has_none(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str, limit: str
) -> None:
    processor(X86, "avx512_bf16")
    monkeypatch.setenv(name, limit)
    resolved = resolve("auto", CPU)
    assert (resolved.name, f"{name}={limit} keeps it from being used" in resolved.reason) == ("fp32", True)


@pytest.mark.parametrize("limit", ["AVX512_CORE_BF16", "AVX512_CORE_AMX", "DEFAULT", ""])
def test_limit_that_leaves_the_instructions_is_none(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    processor(X86, "avx512_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert resolve("auto", CPU).name == "bf16"


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_torch_that_is_held_to_fewer_instructions_has_none(processor: Callable[..., None], capability: str) -> None:
    processor(X86, "avx512_bf16", "amx_bf16", capability=capability)
    resolved = resolve("auto", CPU)
    assert resolved.name == "fp32"
    assert f"ATEN_CPU_CAPABILITY={capability.lower()} keeps it from being used" in resolved.reason


def test_torch_without_onednn_has_none(processor: Callable[..., None]) -> None:
    processor(ARM, "bf16", capability="DEFAULT", onednn=False)
    assert resolve("auto", CPU).name == "fp32"


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_asks_the_very_gpu_whether_it_has_bfloat16_of_its_own(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: Precision
) -> None:
    asked: list[Any] = []

    def device(which: torch.device) -> Any:
        asked.append(which)
        return nullcontext()

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        assert not including_emulation
        return supported

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: "a GPU")
    resolved = resolve("auto", torch.device("cuda", 1))
    assert resolved.name == expected
    assert resolved.reason.startswith(f"auto is {expected} on cuda:1 (a GPU), which has ")
    assert asked == [torch.device("cuda", 1)]


def test_auto_is_fp32_on_other_devices() -> None:
    assert resolve("auto", torch.device("mps")).name == "fp32"


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_counts_and_no_device_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, asked: PrecisionSetting
) -> None:
    monkeypatch.setattr(precision, "hardware_of", lambda device: pytest.fail("looked at"))
    assert resolve(asked, CPU).name == asked


def test_emulated_bf16_is_told_of_once_with_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOLD, "")
    monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(False, "a slow machine"))
    monkeypatch.setattr(precision, "measure_slowdown", lambda device: 9.87)
    for _ in range(2):
        settle("bf16", CPU)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "bf16 is asked for on a slow machine: a linear layer takes 9.9 times as long as in fp32; "
        "precision auto or fp32 does without\n"
    )


@pytest.mark.parametrize(("asked", "has_bf16"), [("auto", False), ("fp32", False), ("bf16", True), ("auto", True)])
def test_nothing_is_told_where_nothing_is_emulated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: PrecisionSetting, has_bf16: bool
) -> None:
    monkeypatch.setenv(TOLD, "")
    monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(has_bf16, "a machine"))
    monkeypatch.setattr(precision, "measure_slowdown", lambda device: pytest.fail("measured"))
    warn_if_emulated(resolve(asked, CPU), CPU)
    assert capsys.readouterr().err == ""


def test_measuring_draws_no_random_numbers_and_gives_a_ratio() -> None:
    before = torch.get_rng_state()
    assert 0 < measure_slowdown(CPU, seconds=0) < 1000
    assert torch.equal(torch.get_rng_state(), before)


def test_record_of_another_precision_is_refused_with_the_reason_and_the_option() -> None:
    resolved = Resolved("auto", "fp32", "auto is fp32 on a slow machine")
    resolved.require_recorded("here", "fp32")
    with pytest.raises(SettingsDifferError) as refused:
        resolved.require_recorded("runs/sum", "bf16", "--precision {0} (or --set precision={0})")
    assert str(refused.value) == (
        "runs/sum: precision: there bf16, here it would be fp32 (auto is fp32 on a slow machine). Give --precision "
        "bf16 (or --set precision=bf16) to go on with it, or another folder for another precision."
    )


def test_context_computes_in_what_it_says_and_fp32_ends_an_outer_bf16() -> None:
    one = torch.ones(2, 2)
    with autocast("cpu", "bf16"):
        assert (one @ one).dtype == dtype_of("bf16") == torch.bfloat16
        with autocast("cpu", "fp32"):
            assert (one @ one).dtype == dtype_of("fp32") == torch.float32


def test_option_takes_the_three_words_and_no_other() -> None:
    @click.command()
    @precision_option("auto", "What is computed in.")
    def command(precision: str) -> None:
        click.echo(precision)

    assert CliRunner().invoke(command, []).output == "auto\n"
    assert CliRunner().invoke(command, ["--precision", "bf16"]).output == "bf16\n"
    assert CliRunner().invoke(command, ["--precision", "half"]).exit_code == 2


def test_option_and_settings_are_there_without_torch() -> None:
    script = "import sys, sum_factory.shared.precision; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
