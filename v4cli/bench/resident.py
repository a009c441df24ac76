"""What this process holds in memory and reads from disk, as the system counts it."""

import ctypes
import re
import sys
from pathlib import Path

import psutil


def resident(kv_dir: Path | None) -> int:
    """Bytes in memory that files of weights do not back: anonymous ones, and mappings of files in `kv_dir`. What the
    allocator keeps of freed working memory is given back first, where it can be asked to.

    Where the system does not tell them apart: all resident bytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    if not sys.platform.startswith("linux"):
        return psutil.Process().memory_info().rss
    total = _kilobytes(Path("/proc/self/smaps_rollup").read_text(), "Anonymous")
    if kv_dir is not None:
        inside = f" {kv_dir.resolve()}/"
        mappings = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
        total += sum(_kilobytes(text, "Rss") for text in mappings if inside in text.partition("\n")[0])
    return total << 10


def _kilobytes(text: str, name: str) -> int:
    return int(re.search(rf"(?m)^{name}: +(\d+) kB$", text)[1])


def disk_reads() -> int | None:
    """Bytes that this process has had read from disks, page faults included; None where that is not counted."""
    try:
        return psutil.Process().io_counters().read_bytes
    except (AttributeError, OSError, psutil.Error):
        return None
