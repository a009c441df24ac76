"""What can have happened to a file, as a table of mutators: each changes a folder in place and says how."""

import json
import os
import random
import socket
import struct
import tarfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np

from v4cli.prefixes import kvfile
from v4cli.store.store import MANIFEST, _manifest_bytes

Mutator = Callable[[Path, random.Random], str]
TERA = 1 << 40
DEEP = "[" * 5_000 + "]" * 5_000
HOSTILE = (
    None, True, False, 0, -1, 1, 3, 255, 65_536, 1 << 24, 1 << 31, 1 << 63, 10**30, 1e308, 5e-324, -0.5, "", "x",
    "x" * 100_000, "../../etc/passwd", "\x00", "\u202e\x1b[2J", [], [[]], [0] * 5_000, {}, {"a": {}}, [1, None, "x"],
)  # fmt: skip


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in found if not suffixes or path.name.endswith(suffixes)]


# Bytes


def flip_a_bit(path: Path, data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def scramble(path: Path, data: bytearray, rng: random.Random) -> None:
    at, n = rng.randrange(len(data)), rng.randrange(1, 200)
    data[at : at + n] = rng.randbytes(len(data[at : at + n]))


def blank(path: Path, data: bytearray, rng: random.Random) -> None:
    at, n = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096))
    data[at : at + n] = bytes(len(data[at : at + n]))


def saturate(path: Path, data: bytearray, rng: random.Random) -> None:
    at, n = rng.randrange(len(data)), rng.choice((1, 4, 64))
    data[at : at + n] = b"\xff" * len(data[at : at + n])


def cut(path: Path, data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def append(path: Path, data: bytearray, rng: random.Random) -> None:
    data += rng.choice((b"\0", b"{}", bytes(4096), b"\xef\xbb\xbf"))


def remove_a_piece(path: Path, data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 512))]


def repeat_a_piece(path: Path, data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.choice((1, 8, 512))]


def exchange_blocks(path: Path, data: bytearray, rng: random.Random) -> None:
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    n = min(64, b - a, len(data) - b)
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]


BYTES = (flip_a_bit, scramble, blank, saturate, cut, append, remove_a_piece, repeat_a_piece, exchange_blocks)


def in_bytes(*suffixes: str) -> Mutator:
    def mutate(folder: Path, rng: random.Random) -> str:
        path, change = rng.choice(files_in(folder, *suffixes)), rng.choice(BYTES)
        data = bytearray(path.read_bytes())
        change(path, data, rng)
        path.write_bytes(data)
        return f"{change.__name__} in {path.name}"

    return mutate


# Files


def another_file(*suffixes: str) -> Mutator:
    """What stands in a file's place is none, or another one."""

    def mutate(folder: Path, rng: random.Random) -> str:
        path, others = rng.choice(files_in(folder, *suffixes)), files_in(folder)
        kind = rng.choice(("gone", "empty", "zeros", "pipe", "folder", "socket", "loop", "sparse", "link", "other"))
        other = rng.choice([one for one in others if one != path] or [path])
        data = other.read_bytes()
        path.unlink()
        if kind == "empty":
            path.write_bytes(b"")
        elif kind == "zeros":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as one:
                where = os.getcwd()
                os.chdir(path.parent)  # the path of a socket may have 107 bytes
                one.bind(path.name)
                os.chdir(where)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "sparse":
            with path.open("wb") as file:
                file.write(data[: rng.choice((0, 8, 1000))])
                file.truncate(rng.choice((TERA, 1 << 32)))
        elif kind == "link":
            path.symlink_to(other)
        elif kind == "other":
            path.write_bytes(data)
        return f"{path.name}: {kind} ({other.name})"

    return mutate


# JSON


def hostile_value(rng: random.Random):
    """One of the table, which later changes of the file do not reach."""
    return deepcopy(rng.choice(HOSTILE))


def places(value, most: int = 3000) -> list[tuple]:
    """Container and key of every value in a parsed file, the first `most`."""
    found, todo = [], [value]
    while todo and len(found) < most:
        one = todo.pop(0)
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        found += [(one, key) for key in keys]
        todo += [one[key] for key in keys]
    return found


def change_json(data, rng: random.Random) -> str:
    """Change a parsed file in one place; the upper levels are as likely as all the rest."""
    spots = places(data)
    holder, key = rng.choice(spots if rng.random() < 0.5 else spots[:60])
    how = rng.choice(("set", "set", "set", "drop", "add", "exchange", "number"))
    if how == "set":
        holder[key] = hostile_value(rng)
    elif how == "drop":
        del holder[key]
    elif how == "add":
        holder.update({"x": hostile_value(rng)}) if isinstance(holder, dict) else holder.append(hostile_value(rng))
    elif how == "number" and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] * rng.choice((2, 0.5, -1, 1000)) + rng.choice((0, 1, 128))
    else:
        other, its = rng.choice(spots)
        # One of the two may stand within the other, which must not come to stand within itself.
        holder[key], other[its] = deepcopy(other[its]), deepcopy(holder[key])
    return f"{how} {str(key)[:30]!r}"


def encoded(data, rng: random.Random) -> bytes:
    text = json.dumps(data, ensure_ascii=rng.random() < 0.5)
    trick = rng.randrange(12)
    if trick == 0:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "replace")
    if trick == 1:
        return text.encode("utf-16", "replace")
    if trick == 2 and text[0] == "{" and len(text) > 2:
        return ("{" + f'"a": {DEEP}, ' + text[1:]).encode("utf-8", "replace")
    if trick == 3 and text[0] == "{" and len(text) > 2:
        return ("{" + text[1:-1] + ", " + text[1:]).encode("utf-8", "replace")  # every key twice
    if trick == 4:
        return text.replace("0", "NaN", 1).encode("utf-8", "replace")
    return text.encode("utf-8", "replace")


def in_json(name: str) -> Mutator:
    def mutate(folder: Path, rng: random.Random) -> str:
        path = folder / name
        data = json.loads(path.read_text())
        said = [change_json(data, rng) for _ in range(rng.choice((1, 1, 1, 2, 4))) if data]
        path.write_bytes(encoded(data, rng))
        return f"{name}: {', '.join(said)}"

    return mutate


def forged_manifest(folder: Path, rng: random.Random) -> str:
    """Changed, with a digest that is right again."""
    data = json.loads((folder / MANIFEST).read_text())
    said = change_json({key: data[key] for key in data if key != "digest"}, rng)
    (folder / MANIFEST).write_bytes(_manifest_bytes(data))
    return f"manifest, signed: {said}"


def in_a_header(folder: Path, rng: random.Random) -> str:
    """A safetensors header that says something else, of any length."""
    path = rng.choice(files_in(folder, ".safetensors", ".chunk", ".snapshot"))
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    said = change_json(header, rng)
    text = json.dumps(header).encode("utf-8", "replace")
    claimed = rng.choice((len(text), len(text), len(text), 0, 1 << 40, (1 << 64) - 1, 100 << 20))
    path.write_bytes(struct.pack("<Q", claimed) + text + data[8 + length :])
    return f"header of {path.name}: {said}, {claimed} bytes"


# Contexts, with checksums that are right again


def forged_arrays(arrays: dict, about: dict, rng: random.Random) -> str:
    """Arrays of other shapes, without values, or other tokens."""
    how = rng.choice(("shape", "nan", "drop", "add", "tokens", "dtype", "none"))
    name = rng.choice(sorted(arrays) or ["x"])
    if how == "shape" and name in arrays:
        arrays[name] = arrays[name].ravel()[: rng.randrange(arrays[name].size + 1)]
    elif how == "nan":
        floats = sorted(name for name, array in arrays.items() if array.dtype == np.float32 and array.size)
        windows = sorted(name for name in arrays if name.endswith((".window", "main.entries")) and arrays[name].size)
        if floats:
            arrays[rng.choice(floats)].ravel()[0] = rng.choice((np.nan, np.inf, -np.inf))
        for window in windows:
            arrays[window][-1] = 0xFF
    elif how == "drop":
        arrays.pop(name, None)
    elif how == "add":
        arrays[rng.choice(("layers.99.window", "x", "rest.y", "layers.0.z", "layers.-1.window"))] = np.zeros(
            3, np.uint8
        )
    elif how == "dtype" and name in arrays:
        arrays[name] = arrays[name].astype(rng.choice((np.uint8, np.int16)))
    elif how == "tokens":
        value = hostile_value(rng)
        about["tokens"] = value if rng.random() < 0.5 else [*about["tokens"], value]
    else:
        about.clear()
    return f"{how} {name}"


def forged_context(folder: Path, rng: random.Random) -> str:
    path = rng.choice(files_in(folder, ".chunk", ".snapshot"))
    about, arrays = kvfile.read(path)
    said = forged_arrays(arrays, about, rng)
    path.write_bytes(kvfile.encoded(arrays, about))
    return f"{path.name[-20:]}: {said}"


def renamed(folder: Path, rng: random.Random) -> str:
    path = rng.choice(files_in(folder, ".chunk", ".snapshot"))
    stem, dot, rest = path.name.partition(rng.choice(".-"))
    name = rng.choice((path.name[::-1], stem[::-1] + dot + rest, stem.replace("0", "1") + dot + rest))
    if name != path.name and not (path.parent / name).exists():
        path.rename(path.parent / name)
    return f"{path.name} is now {name}"


def in_a_tar(folder: Path, rng: random.Random) -> str:
    """Members in another order, number, kind, or of a size that is not theirs."""
    path = files_in(folder, ".v4kv")[0]
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    how = rng.choice(("drop", "twice", "exchange", "name", "kind", "size", "sparse", "header", "forge", "long"))
    i = rng.randrange(len(members))
    info, data = members[i]
    if how == "drop":
        members.pop(i)
    elif how == "twice":
        members.insert(rng.randrange(len(members)), members[i])
    elif how == "exchange":
        members[i], members[-1] = members[-1], members[i]
    elif how == "name":
        info.name = rng.choice(("../../x", "/etc/x", "snapshot", "0000.chunk", "0001.chunk", "identity.json", "\u202e"))
    elif how == "kind":
        info.type, info.linkname = (
            rng.choice((b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"x", b"g", b"L", b"K")),
            "/etc/passwd",
        )
    elif how == "forge" and i:
        about, arrays = kvfile.decoded(bytearray(data), path)
        how += " " + forged_arrays(arrays, about, rng)
        members[i] = info, bytes(kvfile.encoded(arrays, about))
    out, blocks = bytearray(), []
    for j, (one, content) in enumerate(members):
        one.size = len(content)
        if j == i and how == "size":
            one.size = rng.choice((0, 1, len(content) - 1, len(content) + 512, 1 << 33, 8 << 30))
        if j == i and how == "long":
            out += tarfile.TarInfo("x" * 3000).tobuf(tarfile.GNU_FORMAT)
        if j == i and how == "sparse":
            one.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(TERA)}
        if j == i and how == "header":
            one.pax_headers = {"size": str(TERA), "path": "/etc/x"}
        block = one.tobuf(tarfile.PAX_FORMAT if how in ("sparse", "header") else tarfile.GNU_FORMAT)
        blocks.append(len(out))
        out += block + content + bytes(-len(content) % 512)
    path.write_bytes(out + bytes(1024))
    return f"{how} of member {i}"


TABLE: dict[str, tuple[Mutator, ...]] = {
    "store": (
        in_bytes(), in_bytes(".safetensors"), in_bytes(".json"), another_file(), in_json("config.json"),
        in_json(MANIFEST), in_json("tokenizer.json"), forged_manifest, in_a_header,
    ),
    "config": (
        in_json("config.json"), in_json("config.json"), in_json("config.json"), in_bytes("config.json"), another_file(),
        in_json("model.safetensors.index.json"), in_json("generation_config.json"), in_a_header,
    ),
    "tokenizer": (
        in_json("tokenizer.json"), in_json("tokenizer.json"), in_bytes("tokenizer.json"),
        another_file("tokenizer.json"),
    ),
    "archive": (in_bytes(), another_file(), in_a_tar, in_a_tar),
    "prefixes": (in_bytes(), in_bytes(".json"), another_file(), in_a_header, forged_context, renamed),
}  # fmt: skip
