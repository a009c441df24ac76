"""A card measured: `python -m v4cli.bench.gpu check` (make gpu-check), or one of its parts, parity, kernels, model."""

import argparse
import datetime
import importlib.metadata
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from v4cli import __version__, hardware, terminal
from v4cli.bench import gpu_check
from v4cli.engine import gpu
from v4cli.errors import ResourceError, UsageError, V4Error
from v4cli.model.config import V4Config
from v4cli.plan import cost, memory
from v4cli.plan.budget import VRAM_SHARE
from v4cli.plan.placement import Budget, card_shortage
from v4cli.store.parts import layout

MARGIN = 0.06  # of a card that stays free: KV moves when it grows
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

    part, config, free = Part(file, seconds), shape("flash"), hardware.gpus()[number].free
    wanted, chunk = gpu_model.Wanted(), memory.card_chunk(config, free)
    with part.guarded("model"):
        contexts, n_slots = room(config, free, chunk, wanted.contexts)
        for left_out in set(wanted.contexts) - set(contexts):
            part.lack(f"context of {left_out}", "the card does not hold it")
        part.found["slots"] = n_slots
        engine, slots = on_card(config, device, n_slots, chunk, name="random weights of flash")
        try:
            gpu_model.measure(engine, slots, part, replace(wanted, contexts=contexts))
        finally:
            engine.model.bank.close()
    if not part.found.get("decode"):
        raise ResourceError(f"nothing was decoded: {part.found['missing']}")


def room(config: V4Config, free: int, chunk: int, contexts: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The contexts that so many bytes of a card hold beside the slots of a layer's experts, and how many slots they
    hold then. ResourceError."""
    bare = cost.needs(config, cost.stored_tensors(layout(config, "native", False)))
    for count in range(len(contexts), 0, -1):
        needs = cost.at_context(bare, config, contexts[count - 1])
        work = memory.card_work_bytes(config, chunk, contexts[count - 1])
        budget = Budget(0, int((VRAM_SHARE - MARGIN) * free), 1, 1, 1, work=work)
        n_slots = -card_shortage(needs, budget) // needs.slot
        if n_slots >= config.n_routed_experts:
            return contexts[:count], min(n_slots, MOST_SLOTS)
    raise ResourceError("the card holds no layer's experts beside dense weights", "a larger card")


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
