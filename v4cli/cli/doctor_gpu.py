"""What `v4 doctor` says of GPUs: which there are, what is missing, whether they compute right, how fast they are."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from v4cli import hardware
from v4cli.cli import output
from v4cli.engine import gpu
from v4cli.engine.gpu import Finding
from v4cli.errors import UsageError, V4Error
from v4cli.hardware import Gpu

if TYPE_CHECKING:
    from v4kernels.triton.device import Device

Line = tuple[str, str, str, str]  # what, ok or warn or fail, detail, fix


def lines(number: int) -> list[Line]:
    """A line without GPUs; else one of each, and of the one with this number whether it computes right and how fast it
    is. UsageError where there is none of that number."""
    missing, found = gpu.lack(number), hardware.gpus()
    if not found:
        assert missing is not None
        return [("gpu", "ok", f"none: {missing.what}; the CPU computes", "")]
    if number >= len(found):
        assert missing is not None
        raise UsageError(missing.what, missing.fix)
    told = [_card(one, one.number == number) for one in found]
    if missing is not None:
        return [*told, ("gpu kernels", "warn", f"{missing.what}; the CPU computes", missing.fix)]
    return [*told, *_examined(found[number])]


def _card(one: Gpu, is_examined: bool) -> Line:
    """What a card is, and of one that is not examined now what was found out about it."""
    about = gpu.versions(one)
    software = ", ".join(f"{name} {about[name] or 'missing'}" for name in ("driver", "torch", "triton"))
    memory = f"{output.size(one.free)} free of {output.size(one.total)}"
    told = f"{one.name}, compute capability {one.capability}, {memory}; {software}"
    if is_examined:
        return f"gpu {one.number}", "ok", told, ""
    known, again = gpu.recall(one), f"v4 doctor --gpu {one.number}"
    if known is None:
        return f"gpu {one.number}", "ok", f"{told}; not checked yet", again
    if known.fault:
        return f"gpu {one.number}", "warn", f"{told}; it failed: {known.fault}", again
    return f"gpu {one.number}", "ok", f"{told}; it computes the CPU's bits (--gpu {one.number} uses it)", ""


def _examined(one: Gpu) -> list[Line]:
    """Check a card, measure it unless that was done, and keep what was found."""
    start, known = time.monotonic(), gpu.recall(one)
    try:
        device = gpu.device(one.number)
    except V4Error as error:
        return [("gpu check", "fail", f"{error}; the CPU computes", "nvidia-smi tells whether something else holds it")]
    from v4cli.engine.on_card import checks

    rates = known.rates if known and known.rates else None
    finding = gpu.examined(one, device, checks(), lambda device: rates or _limits(device))
    took = time.monotonic() - start
    count, folder = gpu.compiled_kernels()
    told: list[Line] = [("gpu kernels", "ok", f"{count} compiled, kept in {folder}", "")]
    try:
        gpu.remember(one, finding)
    except OSError as error:
        told.append(("gpu file", "warn", f"what was found is not kept ({error.strerror})", "V4_HOME=DIR"))
    if finding.fault:
        detail = f"{finding.fault} (after {took:.1f} s); the CPU computes"
        return [*told, ("gpu check", "fail", detail, "make gpu-check tells more; another driver may help")]
    there = f"models go there{f' with --gpu {one.number}' if one.number else ''}"
    told.append(("gpu check", "ok", f"{', '.join(checks())}: the CPU's bits, in {took:.1f} s; {there}", ""))
    return [*told, _speeds(finding, rates is not None)]


def _speeds(finding: Finding, kept: bool) -> Line:
    names = {"read": "VRAM", "link": "PCIe"}
    told = ", ".join(f"{names[name]} {output.rate(value)}" for name, value in finding.rates.items())
    return "gpu speed", "ok", f"{told}, measured {'before' if kept else 'now'}; v4 plan goes by it", ""


def _limits(device: "Device") -> Mapping[str, float]:
    """Bytes/s by name of gpu.RATES."""
    from v4kernels.triton.measure import limits

    found = limits(device)
    return {"read": found.read, "link": found.to_device}
