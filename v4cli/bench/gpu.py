"""A card measured: `python -m v4cli.bench.gpu check` (make gpu-check), or one of its parts, parity, kernels, model."""

import argparse
import datetime
import importlib.metadata
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from v4cli import __version__, hardware, terminal
from v4cli.bench import gpu_check
from v4cli.engine import gpu
from v4cli.errors import ResourceError, UsageError, V4Error

RESERVED = 18e9  # bytes of a card that are not for slots: dense weights, KV at 1M tokens, working memory
SLOT = 13_369_344  # bytes of a Flash expert
MOST_SLOTS = 9_800
PACKAGES = "torch", "triton", "bitsandbytes", "numpy"


def need_card(number: int) -> None:
    """UsageError that says what is missing to measure one."""
    if missing := gpu.lack(number):
        raise UsageError(f"no card to measure: {missing.what}", missing.fix or gpu.CHECK)


def card(number: int) -> dict[str, Any]:
    """Name, memory, driver, versions: what the file of results says of a card."""
    about = hardware.gpus()[number]
    versions: dict[str, str | None] = {"v4cli": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "name": about.name, "capability": about.capability, "memory_bytes": about.total, "driver": about.driver,
        "versions": versions, "machine": platform.platform(), "date": f"{datetime.date.today()}",
    }  # fmt: skip


def kernels(number: int, seconds: float, file: Path | None, only: str) -> dict[str, Any]:
    """The part `kernels`: what it found."""
    device = gpu.device(number)
    from v4cli.bench.baselines import baselines
    from v4cli.bench.gpu_clock import Stopwatch
    from v4cli.bench.gpu_kernels import Torch, beside, measure
    from v4cli.bench.gpu_limits import Probes
    from v4cli.bench.gpu_ops import Sizes
    from v4cli.bench.gpu_part import Part
    from v4cli.bench.synthetic import shape

    part, sizes, where = Part(file, seconds), Sizes(shape("flash")), f"cuda:{number}"
    measure(device, Stopwatch(device), part, sizes, Probes(), only)
    beside(Stopwatch(Torch(where)), part, sizes, where, baselines(), only)
    return part.found


def parity(seconds: float, file: Path | None) -> None:
    """The part `parity`: nano first, then the tests in the time that is left."""
    from v4cli.bench import gpu_parity
    from v4cli.bench.gpu_part import Part

    part = Part(file, seconds)
    with part.guarded("nano"):
        gpu_parity.nano(part, "triton")
    with part.guarded("tests"), tempfile.TemporaryDirectory() as scratch:
        gpu_parity.kernels(part, part.left, Path(scratch))


def model(number: int, seconds: float, file: Path | None) -> None:
    """The part `model`: all of Flash with random weights, with as many slots as its memory has room for."""
    device = gpu.device(number)
    from v4cli.bench import gpu_model
    from v4cli.bench.gpu_part import Part
    from v4cli.bench.gpu_synthetic import on_card
    from v4cli.bench.synthetic import shape
    from v4cli.plan import memory

    part, config, free = Part(file, seconds), shape("flash"), hardware.gpus()[number].free
    n_slots = min(MOST_SLOTS, max(config.n_routed_experts, int(free - RESERVED) // SLOT))
    part.found["slots"] = n_slots
    with part.guarded("model"):
        engine, slots = on_card(
            config, device, n_slots, memory.card_chunk(config, free), name="random weights of flash"
        )
        try:
            gpu_model.measure(engine, slots, part, gpu_model.Wanted())
        finally:
            engine.model.bank.close()
    if not part.found.get("decode"):
        raise ResourceError(f"nothing was decoded: {part.found['missing']}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="v4cli.bench.gpu", description=__doc__)
    parser.add_argument("part", choices=("check", *(part.name for part in gpu_check.PARTS)))
    parser.add_argument("--seconds", type=float, default=480, help="of a part; what is not begun by then is left out")
    parser.add_argument("--json", type=Path, help="of a part: where to write what it finds")
    parser.add_argument("--gpu", type=int, default=0, help="number of the card, as for v4 run")
    parser.add_argument("--only", default="", help="of kernels: those with this in their names")
    parser.add_argument("--out", type=Path, default=gpu_check.RESULTS, help="of check: folder of the results")
    asked = parser.parse_args()
    try:
        need_card(asked.gpu)
        if asked.part == "check":
            file, good = gpu_check.check(card(asked.gpu), asked.out, asked.gpu)
            terminal.out.write(f"{file}\n")
            return 0 if good else 1
        if asked.part == "kernels":
            kernels(asked.gpu, asked.seconds, asked.json, asked.only)
        elif asked.part == "parity":
            parity(asked.seconds, asked.json)
        else:
            model(asked.gpu, asked.seconds, asked.json)
    except V4Error as error:
        terminal.err.write(f"{error}; {error.hint}\n" if error.hint else f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
