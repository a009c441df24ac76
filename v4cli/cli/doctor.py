"""`v4 doctor`: this machine and this installation, line by line, with a fix where something is wrong."""

import os
import platform
import shutil
from importlib import metadata

from v4cli import __version__, hardware, paths, settings
from v4cli.cli import doctor_gpu, output
from v4cli.cli.progress import waiting
from v4cli.errors import Exit, V4Error
from v4cli.plan import apple
from v4cli.plan.budget import SHARE

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
MIN_FREE_BYTES = 1 << 30
SWITCHES = {  # of the kernel: with which value each forbids user namespaces, and with which it does not
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "user.max_user_namespaces": ("0", "15000"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
}


def report(gpu: int | None, as_json: bool) -> None:
    """Print all checks, of GPUs that of one (by default the one of the settings, else the first); exit 1 if one
    failed."""
    number = settings.load().value("gpu") or 0 if gpu is None else gpu
    with waiting("looking at this machine"):
        of_gpus = doctor_gpu.lines(number)
        checks = [_version(), _packages(), _cpu(), _memory(), _disk(), _kernels(), *of_gpus, _sandbox(), _nano()]
    if as_json:
        output.json_page([{"check": c, "status": s, "detail": d, "fix": f} for c, s, d, f in checks])
    else:
        output.table(
            [(f"{status:<4} {check}", detail + (f" — {fix}" if fix else "")) for check, status, detail, fix in checks]
        )
    if any(status == "fail" for _, status, _, _ in checks):
        raise SystemExit(Exit.FAILURE)


def _version():
    return "v4cli", "ok", f"{__version__}, Python {platform.python_version()}, {platform.system()}", ""


def _packages():
    names = ("torch", "numpy", "safetensors", "tokenizers", "typer", "prompt-toolkit")
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return "packages", "fail", "missing: " + ", ".join(missing), "pip install v4cli"
    return "packages", "ok", ", ".join(found), ""


def _cpu():
    name = hardware.processor()
    flags = hardware.cpuinfo("flags") or hardware.cpuinfo("Features")
    have = [feature for feature in FEATURES if feature in flags.split()]
    of_memory = f", memory of {output.at_most(published)}" if (published := apple.bandwidth(name)) else ""
    detail = f"{name}{of_memory}, {os.cpu_count()} threads, {' '.join(have) or 'no known vector extensions'}"
    return "cpu", "ok", detail, ""


def _memory():
    import psutil

    memory, ram = psutil.virtual_memory(), SHARE * hardware.usable_ram()
    status = "ok" if memory.available > MIN_FREE_BYTES else "warn"
    fix = "" if status == "ok" else "close other programs: nano needs about 0.5 GiB"
    detail = (
        f"{output.size(memory.available)} free of {output.size(memory.total)}, models get {output.size(ram)} (--ram)"
    )
    return "memory", status, detail, fix


def _disk():
    """The disk that models go to."""
    folder = paths.models_dir()
    usage = shutil.disk_usage(hardware.existing(folder))
    detail = f"{output.size(usage.free)} free of {output.size(usage.total)} ({folder})"
    if problem := hardware.not_writable(folder):
        return "disk", "fail", f"{detail}; {problem}", "V4_HOME=DIR keeps everything in another folder"
    if usage.free <= MIN_FREE_BYTES:
        return "disk", "warn", detail, "free some space, or V4_HOME=DIR on another disk"
    return "disk", "ok", detail, ""


def _kernels():
    from v4kernels import native

    if native.available():
        return (
            "kernels",
            "ok",
            f"cpu ({native.isa()}, of {', '.join(native.isa_tiers())}) and reference (plain torch)",
            "",
        )
    detail = f"reference (plain torch) only: {native.reason()}"
    return "kernels", "warn", detail, "install a wheel for this system, or g++ and then reinstall v4cli"


def _sandbox():
    from v4cli.agent import sandbox

    if why := sandbox.missing():
        fix = ""
        if sandbox.name() == "bubblewrap":
            fix = _user_namespaces() if shutil.which("bwrap") else "apt install bubblewrap"
        return "sandbox", "warn", f"{why}; every program that a model runs is asked about", fix
    return "sandbox", "ok", f"{sandbox.name()}, for programs that a model runs", ""


def _user_namespaces() -> str:
    """What to do where bubblewrap is there and fails: most often the kernel refuses user namespaces."""
    for name, (refusing, allowing) in SWITCHES.items():
        if hardware.system_text("/proc/sys/" + name.replace(".", "/")).strip() == refusing:
            return f"the kernel forbids user namespaces ({name} is {refusing}): sudo sysctl -w {name}={allowing}"
    return "the kernel, or the container this runs in, may forbid user namespaces: try unshare --user true"


def _nano():
    from v4cli.store.checkpoint import Checkpoint

    try:
        checkpoint = Checkpoint.open(paths.NANO)
    except V4Error as error:
        return "model nano", "fail", str(error), "reinstall v4cli"
    return "model nano", "ok", f"{output.size(checkpoint.nbytes)}, complete", ""
