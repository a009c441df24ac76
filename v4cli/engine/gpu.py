"""GPUs of this machine: which there are, what is missing to use one, what `v4 doctor` found out about it.

What was found is kept in a file, for one card and the versions of all that computes on it: after an update of any of
them it is to be found out again. Nothing here imports torch or Triton before a device is made.
"""

import importlib.util
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from v4cli import __version__, hardware, jsonfile, paths
from v4cli.errors import UsageError, V4Error
from v4cli.files import write_atomically
from v4cli.hardware import Gpu
from v4cli.plan.cards import READS, Card, like, named

if TYPE_CHECKING:
    from v4kernels.triton.device import Device

LEAST_CAPABILITY = 8.0  # of the matrix instructions for int8 that the kernels are made of
INSTALL = "pip install 'v4cli[gpu]'"
TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cu130"
CHECK = "v4 doctor"
RATES = {"read": READS, "link": 1.0}  # of a Card: measured at most, and the share of it that is made use of
POSSIBLE = 1e6, 1e15  # bytes/s: a rate that is kept and lies elsewhere was not measured


@dataclass(frozen=True)
class Lack:
    """What is missing to compute on a GPU, and what brings it."""

    what: str
    fix: str


@dataclass(frozen=True)
class OnCard:
    """How a model is to be put on a GPU. `vram`: bytes that it may use; `chunk`: rows of a prefill at a time; None:
    whatever suits the card. `kv_host`: entries that a token chooses from in memory of the host. `nf4`: dense weights in
    that format."""

    number: int = 0
    vram: int | None = None
    chunk: int | None = None
    kv_host: bool = False
    nf4: bool = False


ANYHOW = OnCard()


@dataclass(frozen=True)
class Finding:
    """What was found out about a card. `versions` are those it holds for; `fault` is why it did not pass, empty if it
    did; `rates`: bytes/s by name of RATES."""

    name: str
    versions: dict[str, str]
    fault: str = ""
    rates: dict[str, float] = field(default_factory=dict)


# -- what there is ---------------------------------------------------------------------------------------------------


def versions(gpu: Gpu) -> dict[str, str]:
    """Of all that decides whether kernels compute what they should on a card."""
    return {"driver": gpu.driver, "torch": _version("torch"), "triton": _version("triton"), "v4cli": __version__}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def lack(number: int | None = None) -> Lack | None:
    """What is missing to use a GPU, one thing; None if nothing is, as far as can be told without touching one."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return Lack(f"Triton is made for Linux on x86_64, this is {platform.system()} on {platform.machine()}", "")
    found = hardware.gpus()
    if not found:
        if (left := os.environ.get(hardware.VISIBLE)) is not None:
            return Lack(f"{hardware.VISIBLE}={left} leaves no GPU", f"unset {hardware.VISIBLE}")
        return Lack("no GPU is here, or no driver that answers (nvidia-smi)", "nvidia-smi tells more")
    if number is not None and not 0 <= number < len(found):
        return Lack(f"there is no GPU {number}; they are numbered from 0 to {len(found) - 1}", "--gpu 0")
    gpu = found[number or 0]
    if float(gpu.capability) < LEAST_CAPABILITY:
        return Lack(f"{gpu.name} has compute capability {gpu.capability}, the kernels need {LEAST_CAPABILITY}", "")
    if not importlib.util.find_spec("triton"):
        return Lack("triton is not installed", INSTALL)
    torch = _version("torch")
    if not torch or "+cpu" in torch:
        return Lack(f"torch {torch} is made for CPUs only" if torch else "torch is not installed", TORCH)
    return None


def chosen(backend: str | None, number: int | None = None) -> str | None:
    """The backend that computes: the one that is asked for; by default `triton` where a card has passed its checks and
    is still the same, else None, whatever the kernels have. UsageError if what is asked for cannot be."""
    if backend == "triton":
        if missing := lack(number):
            raise UsageError(f"--backend triton: {missing.what}", missing.fix or "drop --backend")
    elif backend is None and _file().is_file():
        found = hardware.gpus()
        if found and lack(number) is None:
            known = recall(found[number or 0])
            return "triton" if known is not None and not known.fault else None
    return backend


def unused() -> bool:
    """Whether there is a GPU about which nothing was found out yet, as far as a look tells."""
    return Path("/proc/driver/nvidia/gpus").is_dir() and not _file().is_file()


def rated(gpu: Gpu) -> Card:
    """What plans suppose of a card: as measured where it was, else as cards of its name, or its size, are."""
    card, known = named(gpu.name) or like(gpu.total), recall(gpu)
    measured = known.rates if known is not None else {}
    rates = {name: share * measured[name] for name, share in RATES.items() if name in measured}
    return replace(card, name=gpu.name, vram=gpu.total, measured=frozenset(rates), **rates)


# -- what was found out -----------------------------------------------------------------------------------------------


def _file() -> Path:
    return paths.state_dir() / "gpus.json"


def recall(gpu: Gpu) -> Finding | None:
    """What was found out about this card with these versions; None if nothing was."""
    told = _read().get(gpu.uuid)
    if not isinstance(told, dict) or told.get("name") != gpu.name or told.get("versions") != versions(gpu):
        return None
    fault, rates = told.get("fault"), told.get("rates")
    if not isinstance(fault, str) or not isinstance(rates, dict) or not all(map(_possible, rates.values())):
        return None
    return Finding(gpu.name, versions(gpu), fault, rates)


def _possible(rate: object) -> bool:
    """Whether a card may be that fast."""
    return isinstance(rate, int | float) and POSSIBLE[0] <= rate <= POSSIBLE[1]


def remember(gpu: Gpu, finding: Finding) -> None:
    """Keep it for `recall`. OSError."""
    _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(_file(), json.dumps(_read() | {gpu.uuid: asdict(finding)}, indent=1).encode(), 0o600)


def _read() -> dict:
    """The file; what is no such file says nothing."""
    try:
        told = jsonfile.read(_file(), limit=jsonfile.SMALL)
    except (V4Error, OSError):
        return {}
    return told if isinstance(told, dict) else {}


# -- finding it out ---------------------------------------------------------------------------------------------------


def device(number: int = 0) -> "Device":
    """The GPU of that number, of those that hardware.gpus lists. UsageError if torch cannot use it."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts; before torch looks
    try:
        from v4kernels.triton.cuda import Cuda

        return Cuda(number)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UsageError(f"GPU {number} cannot be used: {_first_line(error)}", CHECK) from None


Check = Callable[["Device"], str]


def examined(gpu: Gpu, made: "Device", checks: Mapping[str, Check], limits: Callable[["Device"], Mapping]) -> Finding:
    """Check a card and, if it passes, measure it. A check says what is wrong, nothing if all is right; the first that
    does, or fails, decides. `limits`: bytes/s by name of RATES."""
    found = Finding(gpu.name, versions(gpu))
    for name, check in checks.items():
        try:
            wrong = check(made)
        except Exception as error:
            wrong = f"{type(error).__name__}: {_first_line(error)}"
        if wrong:
            return replace(found, fault=f"{name}: {wrong}")
    try:
        measured = limits(made)
    except (RuntimeError, MemoryError) as error:
        return replace(found, fault=f"measuring: {_first_line(error)}")
    return replace(found, rates={name: float(measured[name]) for name in RATES if name in measured})


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def compiled_kernels() -> tuple[int, Path]:
    """How many kernels Triton keeps compiled for GPUs, and in which folder."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or paths.expanded("~/.triton/cache"))
    return sum(1 for kind in ("cubin", "hsaco") for _ in folder.glob(f"*/*.{kind}")), folder
