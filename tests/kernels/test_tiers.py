"""Tiers this machine does not have, under emulators, and all code under sanitizers: minutes of compiling."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent / "cpp"
KERNELS = Path(__file__).parents[2] / "kernels"
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", f"-I{KERNELS}/include", f"-I{KERNELS}/cpu")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni")


def need(*tools):
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def check_tier(out: Path, tier: str, source_flags=(), compiler="g++", flags=(), run=()):
    """Build tier_check for `tier` from sources with their own flags, and run it under `run`."""
    sources = {KERNELS / "cpu" / "scalar.cpp": (), KERNELS / "cpu" / f"{tier}.cpp": source_flags}
    sources[HERE / "tier_check.cpp"] = (f"-DTIER=v4k_tier_{tier}",)
    objects = [out / f"{source.stem}.o" for source in sources]
    for (source, own), built in zip(sources.items(), objects):
        subprocess.run([compiler, *FLAGS, *flags, *own, "-c", source, "-o", built], check=True)
    subprocess.run([compiler, *flags, *objects, "-o", out / "check"], check=True)
    done = subprocess.run([*run, out / "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("tier, more", [("neon", ""), ("i8mm", "+i8mm")])
def test_arm_under_qemu(tmp_path, tier, more):
    need("aarch64-linux-gnu-g++", "qemu-aarch64")
    check_tier(tmp_path, tier, (f"-march=armv8.2-a+dotprod{more}",), "aarch64-linux-gnu-g++", ("-static",),
               ("qemu-aarch64", "-cpu", "max"))  # fmt: skip


def test_avx2_under_qemu(tmp_path):
    need("g++", "qemu-x86_64")
    check_tier(tmp_path, "avx2", AVX2, run=("qemu-x86_64", "-cpu", "Haswell"))


def test_avx512_by_emulated_intrinsics(tmp_path):
    need("g++")
    check_tier(tmp_path, "avx512", (*AVX2, "-include", HERE / "avx512_emulated.h"))


def test_avx512_compiles(tmp_path):
    need("g++")
    source = KERNELS / "cpu" / "avx512.cpp"
    subprocess.run(["g++", *FLAGS, *AVX512, "-w", "-c", source, "-o", tmp_path / "avx512.o"], check=True)


@pytest.mark.parametrize("tier", ["scalar", "avx2"])
def test_kernels_under_address_and_undefined_behaviour_sanitizers(tmp_path, tier):
    need("g++")
    if "avx2" not in Path("/proc/cpuinfo").read_text() and tier == "avx2":
        pytest.skip("this machine has no avx2")
    check_tier(
        tmp_path,
        tier,
        AVX2 if tier == "avx2" else (),
        flags=("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"),
    )


def test_ops_under_address_sanitizer(tmp_path):
    """The op tests against a library built with it, in a process of their own."""
    need("g++")
    built = tmp_path / "libv4k.so"
    objects = []
    for source in sorted((KERNELS / "cpu").glob("*.cpp")):
        if source.stem in ("neon", "i8mm", "avx2", "avx512", "platform_macos", "platform_windows"):
            continue
        objects.append(tmp_path / f"{source.stem}.o")
        flags = (*FLAGS, "-g", "-fPIC", "-fvisibility=hidden", "-fsanitize=address,undefined")
        subprocess.run(["g++", *flags, "-fno-sanitize-recover=all", "-c", source, "-o", objects[-1]], check=True)
    link = ["g++", "-shared", "-pthread", "-fsanitize=address,undefined", *objects, "-o", built]
    subprocess.run(link, check=True)
    files = [str(HERE.parent / name) for name in ("test_layer_ops.py", "test_attention.py", "test_sampling.py")]
    run = (
        "import sys, pytest; from v4kernels import native; "
        f"loaded = native.load(__import__('pathlib').Path({str(built)!r})); native._loaded = lambda: loaded; "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{files!r}]))"
    )
    preload = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    env = os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=env, cwd=HERE.parents[2])
    assert done.returncode == 0 and "." in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


def test_baseline_runs_on_an_old_machine(tmp_path):
    """Nehalem has no AVX: an instruction of another tier in a baseline file would end it."""
    need("g++", "qemu-x86_64")
    check_tier(tmp_path, "scalar", run=("qemu-x86_64", "-cpu", "Nehalem"))


def test_pool_under_thread_sanitizer(tmp_path):
    need("g++")
    sources = (KERNELS / "cpu" / "pool.cpp", KERNELS / "cpu" / "platform_linux.cpp", HERE / "pool_stress.cpp")
    command = ["g++", *FLAGS, "-g", "-pthread", "-fsanitize=thread", *sources, "-o", tmp_path / "stress"]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "stress"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("flags, jobs", [((), 100_000), (("-fsanitize=thread",), 5_000)], ids=["plain", "sanitized"])
def test_hand_offs_to_a_device(tmp_path, flags, jobs):
    need("g++")
    parts = ("serve", "pool", "platform_linux", "scratch", "experts", "dispatch", "scalar")
    sources = [KERNELS / "cpu" / f"{part}.cpp" for part in parts] + [HERE / "serve_stress.cpp"]
    command = ["g++", *FLAGS, "-g", "-pthread", *flags, *sources, "-o", tmp_path / "stress"]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "stress", str(jobs)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
