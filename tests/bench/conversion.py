"""What turning official shards into a store costs: `python tests/bench/conversion.py DIR` writes one CSV row to stdout.

A random checkpoint of true Flash shapes is written to DIR (9 GB for two layers), this disk's sequential write speed
is measured there, and `v4 pull` converts the checkpoint. Rates are bytes written per second, both with fsync.
"""

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from v4cli.bench.synthetic import SHAPES, shape, write_synthetic

PROBE_BYTES = 4 << 30
BLOCK = 4 << 20
COLUMNS = (
    "shape", "layers", "quant", "source_bytes", "store_bytes", "seconds", "convert_MB_per_s", "disk_write_MB_per_s",
    "fraction", "peak_rss_MB", "peak_disk_MB",
)  # fmt: skip


def write_speed(folder: Path) -> float:
    """Bytes per second of one sequential writer, fsync included."""
    path, block = folder / "probe", os.urandom(BLOCK)
    start = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(PROBE_BYTES // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.monotonic() - start
    path.unlink()
    return PROBE_BYTES / seconds


def used(folder: Path) -> int:
    """Bytes of all files below."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # renamed or dropped meanwhile
    return total


def convert(source: Path, home: Path, quant: str) -> tuple[float, int, int]:
    """Run `v4 pull`: seconds, peak resident bytes, peak bytes on disk."""
    peak, over = [0], threading.Event()

    def watch():
        while not over.wait(0.25):
            peak[0] = max(peak[0], used(home))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    command = [sys.executable, "-m", "v4cli", "pull", str(source), "--name", "bench", "--quant", quant]
    try:
        subprocess.run(command, check=True, env=os.environ | {"V4_HOME": str(home)})
    finally:
        seconds = time.monotonic() - start
        over.set()
        watcher.join()
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, max(peak[0], used(home))


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of conversion, as CSV")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--like", choices=SHAPES, default="flash")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--quant", default="native")
    args = parser.parse_args()
    source, home = args.dir / "source", args.dir / "home"
    args.dir.mkdir(parents=True, exist_ok=True)
    write_synthetic(source, shape(args.like, args.layers))
    home.mkdir()
    speeds = [write_speed(args.dir)]
    seconds, rss, disk = convert(source, home, args.quant)
    speeds.append(write_speed(args.dir))  # before and after: disks of shared machines drift
    written, speed = used(home / "models" / "bench"), sum(speeds) / 2
    rate = written / seconds
    out = csv.writer(sys.stdout)
    out.writerow(COLUMNS)
    row = (args.like, args.layers, args.quant, used(source), written, f"{seconds:.1f}", f"{rate / 1e6:.0f}",
           f"{speed / 1e6:.0f}", f"{rate / speed:.2f}", rss // 10**6, disk // 10**6)  # fmt: skip
    out.writerow(row)
    shutil.rmtree(source)
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
