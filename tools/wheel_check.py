"""What must hold for a wheel, found by reading it: nothing is run, so those of other systems can be checked too."""

import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import capstone
import lief
import ziglang
from capstone import x86

ROOT = Path(__file__).parents[1]
MOST_BYTES = 16 << 20
TIERS = ("avx2", "avx512", "neon", "i8mm")  # files with instructions that not every machine has
LIBRARIES = {"manylinux": "libv4k.so", "macosx": "libv4k.dylib", "win": "libv4k.dll"}
OLDEST_GLIBC = (2, 28)
OLDEST_MACOS = [12, 0, 0]
OLDEST_WINDOWS = 10
GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
X86_LATER = [
    getattr(x86, f"X86_GRP_{name}")
    for name in ("SSE3", "SSSE3", "SSE41", "SSE42", "AVX", "AVX2", "AVX512", "FMA", "F16C", "BMI", "BMI2", "MOVBE")
    if hasattr(x86, f"X86_GRP_{name}")
]
X86_NAMES = ("popcnt", "lzcnt", "crc32")  # which have no group
ARM_HALF = ("fadd", "fsub", "fmul", "fdiv", "fmla", "fmls", "fmax", "fmin", "fsqrt")  # on half precision
ARM_LATER = re.compile(  # than 8.0: products of bytes, atomics in one instruction, half precision, complex
    r"([us]|us|su)dot|(u|s|us)mmla|bf(dot|mmla|mlal[bt]|cvtn?2?)|fmlal.*|fmlsl.*|(cas|swp)[alpbh]*|(ld|st)(add|clr|eor|set|[us]max|[us]min)[albh]*"
    r"|sqrdml[as]h|fcmla|fcadd|ldapr[bh]?|fjcvtzs|sha512.*|sm[34].*|eor3|rax1|xar|bcax"
)


def check(wheel: Path, tag: str, objects: Path) -> list[str]:
    """Faults of a wheel for a platform tag whose kernels were compiled into `objects`; none if it is right."""
    return [*_of_archive(wheel, tag), *_of_library(wheel, tag), *(_of_objects(objects) if "mac" not in tag else ())]


def _of_archive(wheel: Path, tag: str) -> Iterator[str]:
    version = re.search(r'__version__ = "(.*)"', (ROOT / "v4cli" / "__init__.py").read_text())[1]
    if wheel.name != f"v4cli-{version}-py3-none-{tag}.whl":
        yield f"its name is not that of version {version} for {tag}"
    if wheel.stat().st_size >= MOST_BYTES:
        yield f"larger than {MOST_BYTES >> 20} MiB"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = archive.read(f"v4cli-{version}.dist-info/WHEEL").decode()
    if f"Tag: py3-none-{tag}\n" not in about or "Root-Is-Purelib: false" not in about:
        yield f"its tags do not say {tag}"
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "v4cli" / "nano" / "checkpoint").iterdir()}
    if missing := tracked - names:
        yield f"nano is not whole: {', '.join(sorted(missing))}"
    libraries = {name for name in names if re.search(r"\.(so|dylib|dll|a|lib)$", name)}
    if libraries != {f"v4kernels/{_library(tag)}"}:
        yield f"holds other libraries: {', '.join(sorted(libraries))}"


def _library(tag: str) -> str:
    return next(library for system, library in LIBRARIES.items() if tag.startswith(system))


def declared() -> set[str]:
    """Functions of v4k.h."""
    return set(re.findall(r"V4K_API [\w *]*?\b(v4k_\w+)\(", (ROOT / "kernels" / "include" / "v4k.h").read_text()))


def _of_library(wheel: Path, tag: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        binary = lief.parse(archive.extract(f"v4kernels/{_library(tag)}", folder))
    if isinstance(binary, lief.ELF.Binary):
        yield from _of_elf(binary)
    elif isinstance(binary, lief.PE.Binary):
        yield from _of_pe(binary)
    else:
        yield from _of_macho(binary)


def _exports(exported: set[str]) -> Iterator[str]:
    if exported != declared():
        yield f"does not export what v4k.h declares: {', '.join(sorted(exported ^ declared()))}"


def _of_elf(binary: lief.ELF.Binary) -> Iterator[str]:
    yield from _exports({symbol.name for symbol in binary.exported_symbols})
    if others := set(binary.libraries) - GLIBC:
        yield f"needs {', '.join(sorted(others))}"
    for needed in binary.symbols_version_requirement:
        for version in needed.get_auxiliary_symbols():
            number = re.fullmatch(r"GLIBC_([0-9.]+)", version.name)
            if number is None or tuple(map(int, number[1].split("."))) > OLDEST_GLIBC:
                yield f"needs {version.name}"


def _of_pe(binary: lief.PE.Binary) -> Iterator[str]:
    yield from _exports({entry.name for entry in binary.get_export().entries})
    for imported in binary.imports:
        if not re.fullmatch(r"kernel32\.dll|ntdll\.dll|api-ms-win-crt-[a-z]+-l1-1-0\.dll", imported.name.lower()):
            yield f"needs {imported.name}"
    if binary.optional_header.major_subsystem_version > OLDEST_WINDOWS:
        yield f"needs Windows {binary.optional_header.major_subsystem_version}"


def _of_macho(binary: lief.MachO.Binary) -> Iterator[str]:
    exported = {symbol.name.removeprefix("_") for symbol in binary.exported_symbols}
    yield from _exports(exported - {"__dso_handle", "_mh_dylib_header"})  # the linker's own
    oldest = binary.build_version
    if oldest is None or oldest.platform != lief.MachO.BuildVersion.PLATFORMS.MACOS or oldest.minos != OLDEST_MACOS:
        yield f"is not for macOS {OLDEST_MACOS}: {oldest}"
    loaded = {command.name for command in binary.libraries if command.command == lief.MachO.LoadCommand.TYPE.LOAD_DYLIB}
    if loaded != {"/usr/lib/libSystem.B.dylib"}:
        yield f"loads {', '.join(sorted(loaded))}"
    ids = [command.name for command in binary.libraries if command.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB]
    if ids != ["@rpath/libv4k.dylib"]:
        yield f"its own name is {ids}"
    if not binary.has_code_signature:
        yield "is not signed, which Apple's processors ask for"
    offered = (Path(ziglang.__file__).parent / "lib" / "libc" / "darwin" / "libSystem.tbd").read_text()
    offered = set(re.findall(r"'?(_?[\w$.]+)'?", offered))
    if missing := {symbol.name for symbol in binary.imported_symbols} - offered:
        yield f"misses {', '.join(sorted(missing))}"


def _of_objects(objects: Path) -> Iterator[str]:
    """Instructions that not every machine has, where none may be."""
    files = [*objects.rglob("*.cpp.o"), *objects.rglob("*.cpp.obj")]
    baseline = [file for file in files if file.name.split(".")[0] not in TIERS]
    sources = {path.stem for path in (ROOT / "kernels" / "cpu").glob("*.cpp")} - set(TIERS)
    missing = sources - {file.name.split(".")[0] for file in baseline}
    if {name for name in missing if not name.startswith("platform_")}:
        yield f"objects are missing: {', '.join(sorted(missing))}"
    for file in baseline:
        count = 0
        for instruction in _instructions(file):
            count += 1
            if _is_later(instruction):
                yield f"{file.name}: {instruction.mnemonic} {instruction.op_str}"
                break
        if count < 10:
            yield f"{file.name}: no code was found in it"


def _instructions(file: Path) -> Iterator[capstone.CsInsn]:
    """Of every section of code."""
    if lief.is_elf(str(file)):
        binary = lief.ELF.parse(str(file))
        arm = binary.header.machine_type == lief.ELF.ARCH.AARCH64
        code = [s for s in binary.sections if s.has(lief.ELF.Section.FLAGS.EXECINSTR)]
    else:
        binary, arm = lief.COFF.parse(str(file)), False
        code = [s for s in binary.sections if s.has_characteristic(lief.PE.Section.CHARACTERISTICS.CNT_CODE)]
    machine = (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM) if arm else (capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder = capstone.Cs(*machine)
    decoder.detail = not arm  # groups
    decoder.skipdata = True
    for section in code:
        yield from decoder.disasm(bytes(section.content), 0)


def _is_later(instruction: capstone.CsInsn) -> bool:
    """Whether it is newer than x86-64, or than Armv8.0. What cannot be decoded is."""
    name = instruction.mnemonic
    if instruction.id == 0:
        return True
    if instruction._cs.arch == capstone.CS_ARCH_ARM64:
        return bool(ARM_LATER.fullmatch(name)) or bool(
            re.match(r"v\d+\.[48]h", instruction.op_str) and name in ARM_HALF
        )
    if name == "tzcnt":  # older machines take it for bsf, which does the same but for 0, of which compilers know
        return False
    return name.startswith("v") or name in X86_NAMES or any(map(instruction.group, X86_LATER))
