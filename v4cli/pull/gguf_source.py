"""A GGUF file on this disk, or the files that it was split into, as a source: the weights, and the config.json and
tokenizer.json that its metadata mean. Those that lie beside it go before, as they know the release."""

import hashlib
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path

from v4cli import files
from v4cli.errors import ModelError
from v4cli.pull.hub import FolderSource
from v4cli.pull.transfer import Cancelled, OnBytes, RemoteFile
from v4cli.store import gguf
from v4cli.store.fingerprint import content
from v4cli.store.gguf import Gguf
from v4cli.store.store import SMALL

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
BESIDE = "put the {} of the release beside it"


class GgufSource(FolderSource):
    """Nothing in the folder is ever changed. ModelError for a file that cannot be read, or a part that is not there."""

    def __init__(self, path: Path, tokenizer_of: Callable[[dict], dict]):
        """`tokenizer_of`: tokenizer.json by metadata; ModelError if there is none in them."""
        self.path, self.repo = path.resolve().parent, str(path.resolve())
        shards = _parts(path.resolve())
        whole = [gguf.read(shard) for shard in shards]
        about = [(shard, shard.stat()) for shard in shards]
        self.files = {shard.name: RemoteFile(shard.name, stat.st_size) for shard, stat in about}
        self.made: dict[str, bytes] = {}
        for name in SMALL:
            if (self.path / name).is_file():
                self.files[name] = RemoteFile(name, (self.path / name).stat().st_size)
        self._make("config.json", lambda: _config(whole, path))
        self._make("tokenizer.json", lambda: tokenizer_of(whole[0].metadata))
        fingerprint = hashlib.sha256()
        for (shard, stat), header in zip(about, whole):
            fingerprint.update(f"{shard.name} {stat.st_size} {stat.st_mtime_ns} {content(header.places)}".encode())
        self.revision = "file-" + fingerprint.hexdigest()[:16]

    def _make(self, name: str, make: Callable[[], dict]) -> None:
        if name not in self.files:
            try:
                self.made[name] = (json.dumps(make(), indent=1, ensure_ascii=False) + "\n").encode()
            except ModelError as problem:
                raise ModelError(f"{self.repo}: {problem}", BESIDE.format(name)) from None
            self.files[name] = RemoteFile(name, len(self.made[name]))

    def foreign(self, config: dict | None, tensors: Collection[str]) -> ModelError | None:
        return None  # what it is, is known

    def fetch(self, name: str, staging: Path, on_bytes: OnBytes, cancelled: Cancelled) -> Path:
        if name not in self.made:
            return super().fetch(name, staging, on_bytes, cancelled)
        staging.mkdir(parents=True, exist_ok=True)
        files.write_atomically(staging / name, self.made[name])
        return staging / name


def _parts(path: Path) -> list[Path]:
    """A file, or all files that it is one of."""
    split = PART.fullmatch(path.name)
    if split is None:
        return [path]
    n = int(split[3])
    parts = [path.with_name(f"{split[1]}-{i + 1:05d}-of-{split[3]}.gguf") for i in range(min(n, 10_000))]
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        raise ModelError(f"{missing}: missing; {path.name} is one of {n} parts", "bring all of them into one folder")
    return parts


def _config(whole: list[Gguf], path: Path) -> dict:
    embed = next((part.places["embed.weight"] for part in whole if "embed.weight" in part.places), None)
    if embed is None:
        raise ModelError("no tensor token_embd.weight")
    return gguf.config(whole[0].metadata, embed.spec.shape[0])
