"""What else a folder or repository may be than an official V4 checkpoint, and what to do with it. Asked when opening
one has failed, so that the user hears what it is before what is wrong with it."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from v4cli import files, jsonfile
from v4cli.errors import ModelError

POINTER_BYTES = 1024  # no pointer is larger, of git-lfs or in the Hugging Face cache
OFFICIAL = "v4 pull flash (or pro) brings an official checkpoint"
STORABLE = f"v4 quantize makes a store of weights in BF16 or F32, else the official ones are needed; {OFFICIAL}"
GGUF = "v4 quantize FILE DST makes a store of one with MXFP4 experts; else v4 pull flash (or pro)"
ORIGINAL = f"the official FP8 and FP4 weights are needed; {OFFICIAL}"
CACHED = "models--"  # begins the folder of a repository in the Hugging Face cache
MAX_NAMES = 10_000  # of a folder, looked at

UNFINISHED = r".*\.(incomplete|part|aria2|crdownload)"
SHARDS = r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
# pattern of a file name, what it means, what to do
FILES = (
    (r".*\.gguf", "a GGUF file, which llama.cpp runs", GGUF),
    (r"adapter_(config\.json|model\..*)", "a LoRA adapter, not a whole model", OFFICIAL),
    (r"model\d+-mp\d+\.safetensors", "converted for DeepSeek's own inference code (modelN-mpM)",
     "use the checkpoint it was converted from; " + OFFICIAL),
    (r"(layer-\d{3}|mtp-\d)(-experts)?\.safetensors", "the parts of a store whose manifest is gone",
     "remove it, then v4 pull it again"),
    (UNFINISHED, "a download that is not finished", "finish it with the program that began it"),
    (r".*\.(bin|pth?|ckpt|pkl)", "a PyTorch pickle, which can run any code; only safetensors are read", OFFICIAL),
    (r".*\.(onnx|h5|msgpack|tflite|npz|mlmodel|mlpackage|engine|llamafile)", "another program's format", OFFICIAL),
)  # fmt: skip
ALIEN = {"qweight", "qzeros", "weight_packed", "weight_scale", "weight_scale_inv", "absmax", "biases", "lora_A"}
ARCHITECTURES = {  # by the beginning of model_type, longest first
    "deepseek_v41": "DeepSeek-V4.1, which has a different architecture and is not supported",
    "deepseek_v4": "",
    "deepseek_v32": "DeepSeek-V3.2, which has a different architecture",
    "deepseek_v3": "DeepSeek-V3, which has a different architecture",
    "deepseek": "an older DeepSeek, which has a different architecture",
}


def foreign(
    where: str, names: Collection[str], config: dict | None = None, tensors: Collection[str] = ()
) -> ModelError | None:
    """What the place `where` is, by names of files, config.json and names of tensors, as far as they are known; None if
    nothing tells that it is something else."""
    found = _by_config(config) or _by_tensors(tensors) or _by_files(names)
    return ModelError(f"{where}: {found[0]}", found[1]) if found else None


def of_folder(path: Path) -> ModelError | None:
    """The same of a folder on this disk, which is looked into."""
    try:
        names = [entry.name for entry, _ in zip(path.iterdir(), range(MAX_NAMES))]
    except OSError as problem:
        return ModelError(f"{path}: cannot be read ({problem.strerror})")
    if not names:
        return ModelError(f"{path}: an empty folder", OFFICIAL)
    pointer = next((name for name in names if is_pointer(path / name)), None)
    if pointer is not None:
        return lfs_pointer(str(path), pointer)
    config = read_config(path / "config.json")
    found = foreign(str(path), names, config, _tensors(path))
    if found is None and config is None:
        found = _one_level_off(path, names)
    return found


def lfs_pointer(where: str, name: str) -> ModelError:
    """The error for a file of which only the pointer was cloned."""
    return ModelError(f"{where}: {name} is a git-lfs pointer, not the file itself", f"in {where}: git lfs pull")


def read_config(path: Path) -> dict | None:
    """config.json without any check; None where there is none that can be read."""
    try:
        config = jsonfile.read(path)
    except ModelError:
        return None
    return config if isinstance(config, dict) else None


def resolved(path: Path) -> Path:
    """The folder meant: of a repository in the Hugging Face cache the snapshot that its main branch, or the only one
    there, is at. ModelError where that is not to be told."""
    given, path = path, path.absolute()
    if path.name == "snapshots" and path.parent.name.startswith(CACHED):
        path = path.parent
    if not path.name.startswith(CACHED) or not (path / "snapshots").is_dir():
        return given
    snapshots = sorted(entry for entry in (path / "snapshots").iterdir() if entry.is_dir())
    if len(snapshots) == 1:
        return snapshots[0]
    try:
        main = files.contents(path / "refs" / "main", POINTER_BYTES).decode("ascii", "replace").strip()
    except ModelError:
        main = ""
    if path / "snapshots" / main in snapshots:
        return path / "snapshots" / main
    repo = path.name.removeprefix(CACHED).replace("--", "/")
    if not snapshots:
        raise ModelError(f"{path}: the Hugging Face cache has no snapshot of it", f"v4 pull {repo}")
    raise ModelError(f"{path}: holds {len(snapshots)} snapshots", f"name one of them: {snapshots[0]}")


def model_name(path: Path) -> str:
    """What to call the model in a folder; those of the Hugging Face cache are named after commits."""
    path = path.absolute()
    named = next((part for part in (path, *list(path.parents)[:2]) if part.name.startswith(CACHED)), path)
    return named.name.rpartition("--")[2] if named.name.startswith(CACHED) else path.resolve().name


def not_a_folder(path: Path) -> ModelError:
    """The error for a file where a model's folder is asked for."""
    if path.suffix == ".gguf":
        return ModelError(f"{path}: {FILES[0][1]}", GGUF)
    return ModelError(f"{path}: a file; a model is a folder", f"perhaps {path.absolute().parent}")


def _by_config(config: dict | None) -> tuple[str, str] | None:
    if config is None:
        return None
    kind = config.get("model_type")
    if kind is None:
        if {"dim", "n_layers"} <= config.keys():
            return "config.json is that of DeepSeek's own inference code", "use the one beside the official weights"
        return None
    if not isinstance(kind, str):
        return None
    known = next((about for prefix, about in ARCHITECTURES.items() if kind.startswith(prefix)), None)
    if known != "":
        return f"{known or f'a model of type {kind[:40]}'}; this engine runs DeepSeek-V4", OFFICIAL
    quantization = config.get("quantization_config")
    method = None
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", quantization.get("quant_algo"))
    if isinstance(config.get("quantization"), dict):
        return "quantized by MLX", ORIGINAL
    if quantization is None:
        return "weights without scales (converted to BF16 or the like: no quantization_config)", STORABLE
    if isinstance(method, str) and method != "fp8":
        return f"quantized by another method ({method[:40]})", ORIGINAL
    return None


def _by_tensors(tensors: Collection[str]) -> tuple[str, str] | None:
    if not tensors:
        return None
    if any(name.startswith(("model.", "language_model.", "transformer.")) for name in tensors):
        return "names of tensors as in transformers (model.…), not the official ones", STORABLE
    endings = {name.rpartition(".")[2] for name in tensors}
    alien = endings & ALIEN
    if alien:
        return f"quantized by another program (tensors named *.{min(alien)})", ORIGINAL
    if "weight" in endings and "scale" not in endings:
        return "weights without scales (converted to BF16 or the like)", STORABLE
    return None


def _by_files(names: Iterable[str]) -> tuple[str, str] | None:
    plain = {name.rpartition("/")[2]: name for name in sorted(names, reverse=True)}
    others = plain.keys() & {"manifest.json"} or any(re.fullmatch(SHARDS, name) for name in plain)
    for pattern, meaning, hint in FILES:
        name = next((name for name in sorted(plain) if re.fullmatch(pattern, name)), None)
        if name is not None and (pattern == UNFINISHED or not others):  # files of other kinds may lie beside ours
            return f"{plain[name][:200]}: {meaning}", hint
    return None


def is_pointer(path: Path) -> bool:
    if path.suffix not in (".safetensors", ".json") or not path.is_file() or path.stat().st_size > POINTER_BYTES:
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(jsonfile.LFS_POINTER)) == jsonfile.LFS_POINTER
    except OSError:
        return False


def _tensors(path: Path) -> Collection[str]:
    """Names of tensors, from the index or a single file."""
    from v4cli.store.checkpoint import INDEX, SINGLE
    from v4cli.store.header import read_header

    try:
        if (path / INDEX).exists():
            index = jsonfile.read(path / INDEX)
            return index["weight_map"].keys()
        return read_header(path / SINGLE) if (path / SINGLE).exists() else ()
    except (ModelError, AttributeError, KeyError, TypeError):
        return ()


def _one_level_off(path: Path, names: list[str]) -> ModelError | None:
    """The folder above, or below, the model's."""
    models = [
        path / name
        for name in sorted(names)
        if (path / name / "config.json").is_file() or (name.startswith(CACHED) and (path / name / "snapshots").is_dir())
    ]
    if len(models) == 1:
        return ModelError(f"{path}: the model is one folder further down", f"use {models[0]}")
    return ModelError(f"{path}: holds {len(models)} models", f"name one of them: {models[0]}") if models else None
