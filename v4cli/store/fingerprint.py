"""What tells the weights in a folder from others that lay there before, without reading all of them.

`content` is a digest of bytes from the middle of tensors: of all but the routed experts, and of EXPERTS routed ones in
each file. Training moves them all, and vectors and matrices in BF16 and F32 show the least step, so two models of one
shape do not agree there by accident. What may agree is an edit of a few values made on purpose: that changes `files`,
the size of every file and the times of its last change, of its bytes and of its entry on the disk. The second of them
cannot be set back, unlike the first.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from v4cli import files, system
from v4cli.errors import ModelError
from v4cli.store.header import TensorPlace

SAMPLE = 4096  # bytes of a tensor
EXPERTS = 16  # tensors of routed experts in each file
READERS = 8


def stamps(paths: list[Path]) -> dict[str, list[int]]:
    """Size and times of files, by name. ModelError if one cannot be found."""
    try:
        stats = {path.name: path.stat() for path in paths}
    except OSError as problem:
        raise ModelError(f"{problem.filename}: cannot be read ({problem.strerror})") from None
    return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in sorted(stats.items())}


def content(places: dict[str, TensorPlace]) -> str:
    """Digest of samples of these tensors. ModelError if a file cannot be read."""
    by_file: dict[Path, list[tuple[str, TensorPlace]]] = {}
    for name, place in sorted(places.items()):
        by_file.setdefault(place.path, []).append((name, place))
    with ThreadPoolExecutor(READERS) as pool:
        samples = list(pool.map(_sampled, sorted(by_file), [by_file[path] for path in sorted(by_file)]))
    return hashlib.sha256(b"".join(samples)).hexdigest()


def _sampled(path: Path, tensors: list[tuple[str, TensorPlace]]) -> bytes:
    """Digest of the samples of one file."""
    routed = [place for name, place in tensors if ".ffn.experts." in name]
    others = [place for name, place in tensors if ".ffn.experts." not in name]
    chosen = others + routed[:: max(1, len(routed) // EXPERTS)]
    digest = hashlib.sha256()
    with files.open_regular(path) as file:
        for place in sorted(chosen, key=lambda place: place.offset):
            n_bytes = min(SAMPLE, place.spec.nbytes)
            try:
                piece = bytearray(n_bytes)
                n_read = system.read_at(file.fileno(), piece, place.offset + (place.spec.nbytes - n_bytes) // 2)
                digest.update(piece[:n_read])
            except OSError as problem:
                raise ModelError(f"{path}: cannot be read ({problem.strerror})") from None
    return digest.digest()
