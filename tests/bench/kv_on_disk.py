"""A million tokens of KV in a file under a limit on memory, as CSV: `python tests/bench/kv_on_disk.py FOLDER`.

All 43 Flash layers, random weights of 8 experts each (a token reads as much as with 256), synthetic cache entries.
The limit is what the process held before the cache, and ROOM more for it: page cache counts. Needs 16 GiB of memory,
root, and the memory controller of cgroup v1.
"""

import argparse
import csv
import ctypes
import gc
import os
import sys
from pathlib import Path
from statistics import median

from v4cli.bench.fill import fill
from v4cli.bench.resident import disk_reads
from v4cli.bench.speed import random_engine, seconds
from v4cli.bench.synthetic import shape
from v4cli.errors import UsageError

GROUP = Path("/sys/fs/cgroup/memory/v4-kv-on-disk")
ROOM = 1 << 30
EXPERTS, TOKENS, WARM = 8, 8, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--context", type=int, default=1_000_000)
    args = parser.parse_args()
    try:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "tasks").write_text(str(os.getpid()))
    except OSError as error:
        raise UsageError(f"{GROUP}: {error.strerror}", "run it as root where cgroup v1 is mounted") from None
    engine = random_engine(shape("flash", None, EXPERTS), "native", "synthetic")
    out = csv.writer(sys.stdout)
    out.writerow(("kv", "context", "kv_bytes", "limit_bytes", "median_s", "disk_bytes_per_token", "of_ram_speed"))
    in_ram = _decode(engine, None, args.context)
    out.writerow(("ram", args.context, in_ram[0], "", *in_ram[1:], ""))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    limit = int((GROUP / "memory.usage_in_bytes").read_text()) + ROOM
    (GROUP / "memory.limit_in_bytes").write_text(str(limit))
    on_disk = _decode(engine, args.folder, args.context)
    out.writerow(("file", args.context, on_disk[0], limit, *on_disk[1:], f"{in_ram[1] / on_disk[1]:.3f}"))


def _decode(engine, folder: Path | None, context: int) -> tuple[int, float, int]:
    """Bytes of KV, median seconds of a token, bytes it read from disk."""
    session = engine.session(folder)
    fill(session, context)
    times, before = [], 0
    for i in range(WARM + TOKENS):
        before = disk_reads() if i == WARM else before
        times.append(seconds(lambda i=i: session.feed([i])))
    return session.state.nbytes, median(times[WARM:]), (disk_reads() - before) // TOKENS


if __name__ == "__main__":
    main()
