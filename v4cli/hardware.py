"""What this machine has: memory, disk, and how fast they can be read. Probes are short and leave nothing behind."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from v4cli import system

PROBE_RAM = 512 << 20  # larger than the caches of nearly every processor
PROBE_DISK = 256 << 20
PROBE_SECONDS = 0.4
BLOCK = 4 << 20
PATIENCE = 60  # seconds for allocating
VISIBLE = "CUDA_VISIBLE_DEVICES"
READERS = 2  # threads that keep an SSD busy with large reads


def ram() -> tuple[int, int]:
    """Bytes of RAM: all, and free for new programs."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def usable_ram() -> int:
    """Bytes free for new programs, not more than the control group of this process may have."""
    limits = [ram()[1]]
    for line in system_text("/proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            file = "memory.max" if kinds == "" else "memory/{}/memory.limit_in_bytes"
            file = f"{path.strip('/')}/{file}" if kinds == "" else file.format(path.strip("/"))
            text = system_text(f"/sys/fs/cgroup/{file}").strip()
            limits += [int(text)] if text.isdigit() else []
    return min(limits)


def cpuinfo(field: str) -> str:
    """What Linux says of its processors (the last of them), by the name of a line; nothing elsewhere."""
    told = (line.partition(":") for line in system_text("/proc/cpuinfo").splitlines())
    return {name.strip(): value.strip() for name, _, value in told}.get(field, "")


def processor() -> str:
    """The processor's name as its system tells it, such as "Apple M3 Max"."""
    return cpuinfo("model name") or system.processor()


def system_text(path: str) -> str:
    """Contents of a system file; nothing where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


class Gpu(NamedTuple):
    """An NVIDIA GPU, as its driver tells; bytes of memory."""

    number: int
    name: str
    uuid: str
    driver: str
    capability: str  # 8.9
    total: int
    free: int


def gpus() -> list[Gpu]:
    """Those that a process may use, numbered as torch does; none where no driver answers. torch is not asked."""
    fields = "index,name,uuid,driver_version,compute_cap,memory.total,memory.free"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if not shutil.which(command[0]):
        return []
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        return _visible([_gpu(line) for line in lines if line.strip()])
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _gpu(line: str) -> Gpu:
    """Of a line of the driver's answer. ValueError."""
    number, name, uuid, driver, capability, total, free = (field.strip() for field in line.split(","))
    return Gpu(int(number), name, uuid, driver, str(float(capability)), int(total) << 20, int(free) << 20)


def _visible(found: list[Gpu]) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order, as CUDA does: up to the first that is not there."""
    names = os.environ.get(VISIBLE)
    if names is None:
        return found
    left: list[Gpu] = []
    for name in names.split(","):
        one = next((one for one in found if _means(name.strip(), one)), None)
        if one is None:
            break
        left.append(one._replace(number=len(left)))
    return left


def _means(name: str, one: Gpu) -> bool:
    """Whether this is a GPU's number, or the beginning of its UUID."""
    return name == str(one.number) or (name.startswith("GPU-") and one.uuid.startswith(name))


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.isdir(path))


def not_writable(folder: Path) -> str | None:
    """Why nothing can be written in `folder`, which need not be there yet; None if something can. Found by trying."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        return f"{there} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"{there} cannot be written ({error.strerror})"


def disk_free(folder: Path) -> int:
    """Bytes free where `folder` is or would be."""
    return shutil.disk_usage(existing(folder)).free


def ram_speed() -> float:
    """Bytes per second that all cores together read from memory."""
    import numpy as np

    n_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    size = min(PROBE_RAM, ram()[1] // 8) // n_threads // 8
    read = [0] * n_threads
    ready = threading.Barrier(n_threads + 1)

    def reader(i: int) -> None:
        data = np.ones(size, dtype=np.uint64)  # written by the thread that reads it: its own memory node
        ready.wait(PATIENCE)
        end = time.perf_counter() + PROBE_SECONDS
        while time.perf_counter() < end:
            data.max()
            read[i] += data.nbytes

    threads = [threading.Thread(target=reader, args=(i,), daemon=True) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE)
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(read) / (time.perf_counter() - start)


def disk_speed(folder: Path, sample: Path | None = None) -> float | None:
    """Bytes per second of large sequential reads in `folder`: of `sample` if there is such a file of some size, else
    of a temporary file. None if there is no room for it."""
    try:
        if sample is not None and sample.stat().st_size >= PROBE_DISK:
            with sample.open("rb", buffering=0) as file:
                return _read_speed(file.fileno(), PROBE_DISK)
        if disk_free(folder) < 2 * PROBE_DISK:
            return None
        with tempfile.TemporaryFile(dir=existing(folder), buffering=0) as file:
            block = os.urandom(BLOCK)  # some disks compress
            for _ in range(PROBE_DISK // BLOCK):
                file.write(block)
            os.fsync(file.fileno())
            return _read_speed(file.fileno(), PROBE_DISK)
    except OSError:
        return None


def _read_speed(handle: int, n_bytes: int) -> float:
    """Bytes per second of reading the first `n_bytes`, from the disk and not from memory."""
    system.uncached(handle, n_bytes)

    def reader(i: int) -> None:
        buffer = bytearray(BLOCK)
        for at in range(i * BLOCK, n_bytes, READERS * BLOCK):
            system.read_at(handle, buffer, at)

    threads = [threading.Thread(target=reader, args=(i,), daemon=True) for i in range(READERS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return n_bytes / (time.perf_counter() - start)
