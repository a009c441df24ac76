"""Kernels for GPUs beside a card's limits, torch and bitsandbytes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from v4kernels.triton.device import Device

from v4cli.bench.gpu_clock import Stopwatch
from v4cli.bench.gpu_handoff import round_trip
from v4cli.bench.gpu_limits import Probes, limits
from v4cli.bench.gpu_memory import Memory
from v4cli.bench.gpu_ops import Case, Sizes, cases
from v4cli.bench.gpu_part import Part

MOST_LAYERS = 128  # of a baseline in a graph


def measure(device: Device, watch: Stopwatch, part: Part, sizes: Sizes, probes: Probes, only: str = "") -> None:
    """Limits, then every case whose name has `only` in it, into `part` as they come."""
    for name, value in part.each("limits", limits(device, watch, probes)):
        part.found["limits"][name] = value
    with part.guarded("hand-off"):
        part.found["limits"]["hand_off_us"] = round_trip(device)
        part.save()
    read = part.found["limits"].get("read")
    for name, make in cases(sizes):
        if only not in name or not part.begins(name):
            continue
        with part.guarded(name), Memory(device) as memory:
            for case in make(memory):
                part.row("kernels", timed(case, watch.piece(case.work, case.count), read))


def timed(case: Case, seconds: float, read: float | None) -> dict[str, Any]:
    """One line: `rate` in GB/s and `of_read`, its part of read bandwidth; `gmacs`: 10^9 multiply-adds a second."""
    rate = case.n_bytes / seconds / 1e9
    line = {"op": case.op, "shape": case.shape, "of": case.of, "us": 1e6 * seconds, "bytes": case.n_bytes, "rate": rate}
    return line | {"gmacs": case.macs / seconds / 1e9, "of_read": rate / read if read else None}


class Torch:
    """A device as torch has it, for a stopwatch: `cuda:0`; on a CPU work is not recorded but done again."""

    def __init__(self, name: str):
        import torch

        self.name, self.torch = name, torch

    def synchronize(self) -> None:
        if self.name != "cpu":
            self.torch.cuda.synchronize(self.name)

    @contextmanager
    def record(self) -> Iterator[Any]:
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.device(self.name), self.torch.cuda.graph(graph):
            yield graph


def beside(
    watch: Stopwatch, part: Part, sizes: Sizes, where: str, made: Mapping[str, Callable | str], only: str = ""
) -> None:
    """The dense matrices of a layer, and one of them times many tokens, by layers of other libraries (baselines.py)."""
    import torch

    read = part.found["limits"].get("read")
    rows, cols = sizes.dense()["shared w1"]
    shapes = [(name, *shape, 1) for name, shape in sizes.dense().items()]
    shapes += [("product", rows, cols, tokens) for tokens in sizes.prompt]
    for library, make in made.items():
        if isinstance(make, str):
            part.lack(library, make)
            continue
        for of, rows, cols, tokens in shapes:
            name = f"{library} {of} {tokens}x{cols}x{rows}"
            if only not in name or not part.begins(name):
                continue
            with part.guarded(name), torch.inference_mode():
                layers = [make(rows, cols, tokens, where)]
                n_bytes = layers[0][1]
                wanted = min(MOST_LAYERS, max(2, -(-sizes.rotated // n_bytes))) if tokens == 1 else 2
                layers += [make(rows, cols, tokens, where) for _ in range(wanted - 1)]
                case = Case(library, f"{of} {tokens}x{cols}x{rows}", n_bytes, tokens * rows * cols, lambda i: None)
                seconds = watch.piece(lambda i, layers=layers: layers[i][0](), wanted)
                part.row("beside", timed(case, seconds, read))


def as_table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines for CSV, names first: limits, kernels, and what is beside them; `of_read`: part of read bandwidth. What is
    missing has a line that says why."""
    lines = [("op", "shape", "us", "GB/s", "GMAC/s", "of_read", "note")]
    for name, value in found.get("limits", {}).items():
        us, rate = (f"{value:.3f}", "") if name.endswith("_us") else ("", f"{value:.2f}")
        lines.append((name.removesuffix("_us"), "", us, rate, "", "", ""))
    for row in [*found.get("kernels", []), *found.get("beside", [])]:
        of_read = "" if row["of_read"] is None else f"{row['of_read']:.3f}"
        numbers = f"{row['us']:.3f}", f"{row['rate']:.2f}", f"{row['gmacs']:.1f}", of_read
        lines.append((row["op"], row["shape"], *numbers, ""))
    return lines + [(name, "", "", "", "", "", why) for name, why in found["missing"].items()]
