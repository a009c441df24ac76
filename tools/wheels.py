"""Makes the wheels of every system, on Linux, and checks them: `python tools/wheels.py DIR`.

The compiler and the C libraries come from ziglang (PyPI), what is built is what CMake builds everywhere else.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ziglang
from wheel_check import check

ROOT = Path(__file__).parents[1]


class Target(NamedTuple):
    """`tag`: of the wheel's platform; `zig`: the same in zig's words, with the oldest C library or system."""

    tag: str
    zig: str


TARGETS = (
    Target("manylinux_2_28_x86_64", "x86_64-linux-gnu.2.28"),
    Target("manylinux_2_28_aarch64", "aarch64-linux-gnu.2.28"),
    Target("macosx_12_0_arm64", "aarch64-macos.12.0"),
    Target("win_amd64", "x86_64-windows-gnu"),
)


def environment(zig: str) -> dict[str, str]:
    """What zig.cmake and zig-c++ want to know."""
    return os.environ | {"ZIG": str(Path(ziglang.__file__).parent / "zig"), "ZIG_TARGET": zig}


def objects_of(target: Target) -> Path:
    """Folder of the target's objects, which is kept."""
    return ROOT / "build" / f"wheel-{target.tag}"


def make(target: Target, out: Path) -> Path:
    """The wheel of a target, in `out`. CalledProcessError."""
    settings = {"build-dir": objects_of(target), "cmake.define.CMAKE_TOOLCHAIN_FILE": ROOT / "tools" / "zig.cmake"}
    raw = out / "raw" / target.tag
    for old in raw.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", raw, ROOT]
    command += [f"--config-setting={name}={value}" for name, value in settings.items()]
    subprocess.run(command, check=True, env=environment(target.zig), stdout=subprocess.DEVNULL)
    (wheel,) = raw.glob("*.whl")
    retag = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", target.tag, wheel]
    name = subprocess.run(retag, check=True, capture_output=True, text=True).stdout.split()[-1]
    return (raw / name).replace(out / name)


def main(out: Path) -> int:
    faults = 0
    for target in TARGETS:
        wheel = make(target, out)
        found = check(wheel, target.tag, objects_of(target))
        print(f"{wheel.name}  {wheel.stat().st_size / 2**20:.1f} MiB", *(found or ["checked"]), sep="\n  ", flush=True)
        faults += len(found)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
