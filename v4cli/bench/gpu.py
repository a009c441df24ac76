"""A card measured: `python -m v4cli.bench.gpu check` (make gpu-check), or one of its parts, kernels, model, parity."""

import argparse
import datetime
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from v4cli import __version__, terminal
from v4cli.bench import gpu_check
from v4cli.errors import UsageError, V4Error


def missing() -> list[str]:
    """What there is not of all that measuring a card needs."""
    lack = [f"{name} (pip install 'v4cli[gpu]')" for name in ("torch", "triton") if not importlib.util.find_spec(name)]
    if "torch" not in " ".join(lack):
        import torch

        if not torch.cuda.is_available():
            made = "is made for CPUs only" if "+cpu" in torch.__version__ else "finds none, nor its driver"
            lack.append(f"a GPU (torch {torch.__version__} {made})")
    return lack


def need_card() -> None:
    """UsageError that says what is missing."""
    if lack := missing():
        raise UsageError(f"nothing to measure; missing: {', '.join(lack)}", "v4 doctor shows what is there")


def card(number: int) -> dict[str, Any]:
    """Name, memory, driver, versions: what the file of results says of a card."""
    import torch

    about = torch.cuda.get_device_properties(number)
    versions = {"v4cli": __version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    for name in ("torch", "triton", "bitsandbytes", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    capability = f"sm_{about.major}{about.minor}" if torch.version.cuda else about.gcnArchName
    return {
        "name": about.name, "gpu": capability, "memory_bytes": about.total_memory, "driver": driver(),
        "versions": versions, "machine": platform.platform(), "date": f"{datetime.date.today()}",
    }  # fmt: skip


def driver() -> str | None:
    """Version of NVIDIA's driver, as its tool says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def kernels(number: int, seconds: float, file: Path | None, only: str) -> None:
    """The part `kernels`, on a card."""
    from v4kernels.triton.cuda import Cuda

    from v4cli.bench.baselines import baselines
    from v4cli.bench.gpu_clock import Stopwatch
    from v4cli.bench.gpu_kernels import Torch, beside, measure
    from v4cli.bench.gpu_limits import Probes
    from v4cli.bench.gpu_ops import Sizes
    from v4cli.bench.gpu_part import Part
    from v4cli.bench.synthetic import shape

    device, part, sizes = Cuda(number), Part(file, seconds), Sizes(shape("flash"))
    measure(device, Stopwatch(device), part, sizes, Probes(), only)
    where = f"cuda:{number}"
    beside(Stopwatch(Torch(where)), part, sizes, where, baselines())


def parity(seconds: float, file: Path | None) -> None:
    """The part `parity`: nano first, then the tests in the time that is left."""
    from v4cli.bench import gpu_parity
    from v4cli.bench.gpu_part import Part

    part = Part(file, seconds)
    with part.guarded("nano"):
        gpu_parity.nano(part, "triton")
    with part.guarded("tests"), tempfile.TemporaryDirectory() as scratch:
        gpu_parity.kernels(part, part.left, Path(scratch))


def main() -> int:
    parser = argparse.ArgumentParser(prog="v4cli.bench.gpu", description=__doc__)
    parser.add_argument("part", choices=("check", *(part.name for part in gpu_check.PARTS)))
    parser.add_argument("--seconds", type=float, default=480, help="of a part; what is not begun by then is left out")
    parser.add_argument("--json", type=Path, help="of a part: where to write what it finds")
    parser.add_argument("--gpu", type=int, default=0, help="number of the card")
    parser.add_argument("--only", default="", help="of kernels: those with this in their names")
    parser.add_argument("--out", type=Path, default=gpu_check.RESULTS, help="of check: folder of the results")
    asked = parser.parse_args()
    try:
        need_card()
        if asked.part == "check":
            file, good = gpu_check.check(card(asked.gpu), asked.out)
            terminal.out.write(f"{file}\n")
            return 0 if good else 1
        if asked.part == "kernels":
            kernels(asked.gpu, asked.seconds, asked.json, asked.only)
        elif asked.part == "parity":
            parity(asked.seconds, asked.json)
        return 0
    except V4Error as error:
        terminal.err.write(f"{error}; {error.hint}\n" if error.hint else f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
