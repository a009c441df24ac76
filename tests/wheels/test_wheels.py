"""Wheels of every system, made here: read by what checks them, the one for this machine installed and run. Minutes."""

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from v4kernels import native

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")
PROGRAM = ROOT / "tests" / "kernels" / "cpp" / "every_op.cpp"
sys.path.insert(0, str(ROOT / "tools"))
wheels = pytest.importorskip("wheels", reason="pip install -e '.[wheels]' brings the compiler")
TARGETS = {target.tag: target for target in wheels.TARGETS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Wheel by tag, made when first asked for."""
    out, found = tmp_path_factory.mktemp("wheels"), {}

    def of(tag):
        if tag not in found:
            found[tag] = wheels.make(TARGETS[tag], out)
        return found[tag]

    return of


@pytest.mark.parametrize("tag", TARGETS)
def test_a_wheel_is_what_its_tags_say(made, tag):
    assert wheels.check(made(tag), tag, wheels.objects_of(TARGETS[tag])) == []


def test_the_check_finds_what_is_wrong(made, monkeypatch, tmp_path):
    import wheel_check

    tag = "manylinux_2_28_x86_64"
    renamed = shutil.copy(made(tag), tmp_path / "v4cli-0.0.0-py3-none-any.whl")
    monkeypatch.setattr(wheel_check, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(wheel_check, "OLDEST_GLIBC", (2, 5))
    monkeypatch.setattr(wheel_check, "TIERS", ())
    monkeypatch.setattr(wheel_check, "declared", lambda: {"v4k_another"})
    found = "\n".join(wheel_check.check(Path(renamed), tag, wheels.objects_of(TARGETS[tag])))
    for fault in ("name is not", "larger than 1 MiB", "needs GLIBC_2.", "v4k_another", "avx2.cpp.o: v"):
        assert fault in found


def program(folder, wheel, target):
    """A program that calls every function of the wheel's library, beside that."""
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, folder], check=True)
    (library,) = (folder / "v4kernels").glob("libv4k.*")
    env, compiler = wheels.environment(target.zig), ROOT / "tools" / "zig-c++"
    out = library.parent / "every_op.exe"
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", f"-I{ROOT}/kernels/include")
    subprocess.run([compiler, *flags, "-c", PROGRAM, "-o", folder / "every_op.o"], check=True, env=env)
    link = [compiler, folder / "every_op.o", library, "-o", out]
    subprocess.run([*link, *(() if library.suffix == ".dll" else ("-Wl,-rpath,$ORIGIN",))], check=True, env=env)
    return out


def lines(command, folder):
    deep = folder / ("deep" * 40) / ("deeper" * 40)
    deep.mkdir(parents=True, exist_ok=True)
    (deep / "file").write_bytes(b"\7")
    done = subprocess.run([*command, folder / "file", deep / "file"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    return done.stdout.split("\n# ")


def by_tier(parts):
    return [part.partition("\n")[2].removesuffix("memory and files\n").strip() for part in parts]


@pytest.fixture(scope="module")
def bits(tmp_path_factory):
    """What every function gives, by this machine's library."""
    folder = tmp_path_factory.mktemp("here")
    library = Path(native.library()._name)
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", f"-I{ROOT}/kernels/include", f"-Wl,-rpath,{library.parent}")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    subprocess.run(["g++", *flags, PROGRAM, library, "-o", folder / "every_op"], check=True)
    found = by_tier(lines([folder / "every_op"], folder))
    assert len(set(found)) == 1 and len(found[0].splitlines()) > 50
    return found[0]


@pytest.mark.parametrize("tag, run, tiers", [
    ("manylinux_2_28_x86_64", (), None),
    ("manylinux_2_28_aarch64", ("qemu-aarch64", "-cpu", "max"), 3),
    ("manylinux_2_28_aarch64", ("qemu-aarch64", "-cpu", "cortex-a53"), 1),
    ("win_amd64", ("wine",), None),
])  # fmt: skip
def test_every_function_gives_the_bits_of_this_machine(made, bits, tmp_path, tag, run, tiers):
    if run and shutil.which(run[0]) is None:
        pytest.skip(f"{run[0]} is not installed")
    if tag.endswith("x86_64") and platform.machine() != "x86_64":
        pytest.skip("another processor")
    if run[:1] == ("qemu-aarch64",):
        if not ARM_LIBRARIES.is_dir():
            pytest.skip("libc6-arm64-cross is not installed")
        run = (*run, "-L", ARM_LIBRARIES)
    found = by_tier(lines([*run, program(tmp_path, made(tag), TARGETS[tag])], tmp_path))
    assert len(found) == 2 * (tiers or len(native.isa_tiers())) and set(found) == {bits}


def installed(wheel, folder):
    """Python and variables of an environment with the wheel in it, and with what torch and others are here; PATH has
    nothing but that."""
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    env = {"PATH": str(python.parent), "HOME": str(folder), "V4_HOME": str(folder / "home")}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, env=env)
    others = next(path for path in sys.path if (Path(path) / "torch").is_dir())
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    for name in os.listdir(others):  # all but this package, which is installed there in another way
        if "v4cli" not in name and "v4kernels" not in name and not (site / name).exists() and not name.endswith(".pth"):
            (site / name).symlink_to(Path(others) / name)
    return python, env


def runs(wheel, folder):
    """Whether nano answers from the wheel's own library, with no compiler to be found."""
    python, env = installed(wheel, folder)
    done = subprocess.run(
        [python.parent / "v4", "run", "--local", "--model", "nano", "--temp", "0", "Hello, who are you?"],
        env=env, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0 and "nano" in done.stdout, done.stderr
    told = subprocess.run(
        [python, "-c", "import shutil; from v4kernels import native; "
         "print(native.available(), native.__file__, *map(shutil.which, ('c++', 'g++', 'cc', 'clang')))"],
        env=env, cwd=folder, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return told.startswith("True") and str(folder) in told and told.split()[-4:] == ["None"] * 4


def test_a_wheel_runs_without_a_compiler(made, tmp_path):
    tag = f"manylinux_2_28_{platform.machine()}"
    if sys.platform != "linux" or tag not in TARGETS:
        pytest.skip("there is no wheel for this machine")
    assert runs(made(tag), tmp_path)


def test_the_source_distribution_builds_with_a_plain_compiler(tmp_path):
    """It holds all that a wheel is made of, and nothing else compiles it."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("no g++")
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    (source,) = tmp_path.glob("v4cli-*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    needed = {name for name in tracked if name.startswith(("kernels/", "v4cli/", "tests/")) and (ROOT / name).is_file()}
    assert needed <= names and not any(name.endswith((".o", ".so")) or name.startswith("build/") for name in names)
    env = {name: value for name, value in os.environ.items() if name not in ("ZIG", "ZIG_TARGET")} | {"CXX": "g++"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source]
    subprocess.run(command, check=True, env=env, cwd=tmp_path)
    (wheel,) = tmp_path.glob("v4cli-*.whl")
    assert runs(wheel, tmp_path)
