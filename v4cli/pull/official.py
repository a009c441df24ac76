"""An official checkpoint that need not be here: its small files, index and headers, checked before hours of work."""

import struct
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from v4cli import jsonfile
from v4cli.errors import ModelError, NetworkError
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.pull.hub import Source
from v4cli.pull.transfer import Cancelled
from v4cli.store import kinds
from v4cli.store.checkpoint import INDEX, SINGLE
from v4cli.store.header import TensorPlace, read_header
from v4cli.store.store import NEEDED, SMALL
from v4cli.store.verify import NO_READERS, Readers

RATE_FROM = 1 << 20  # small files of fewer bytes do not tell how fast the network is
FIRST_BYTES = 256 << 10  # of a shard: holds most headers


class Official:
    """What a source offers, read once; everything else follows from config and index."""

    def __init__(self, source: Source, staging: Path, readers: Readers = NO_READERS, needed: Iterable[str] = ()):
        """Fetch what is small into `staging`. ModelError unless the source has every tensor, every shard and every
        small file that a store needs, and those in `needed`; or says what it is instead."""
        self.source = source
        self.rate: float | None = None  # bytes per second
        self.small = {name: source.files[name].n_bytes for name in (*SMALL, INDEX) if name in source.files}
        paths = self._fetch_small(staging, needed)
        self.config = self._config(paths["config.json"])
        self.shard_of = self._index(paths.get(INDEX), staging)  # tensor -> shard
        self.with_mtp = any(name.startswith("mtp.") for name in self.shard_of)
        self.expected: dict[str, TensorSpec] = expected_tensors(self.config, self.with_mtp)
        odd = sorted(self.expected.keys() ^ self.shard_of.keys())
        if odd:
            problem = "is missing" if odd[0] in self.expected else "does not belong to this model"
            self._refuse(f"tensor {odd[0][:200]} {problem} ({len(odd)} such)", tensors=self.shard_of)
        absent = next((shard for shard in sorted(set(self.shard_of.values())) if shard not in source.files), None)
        if absent is not None:
            self._refuse(f"shard {absent[:200]} is missing, though {INDEX} names it")
        for name in readers.keys() & paths.keys():
            try:
                readers[name](paths[name], self.config)
            except ModelError as problem:
                self._refuse(f"{name}: {str(problem).removeprefix(f'{paths[name]}: ')}")

    @property
    def record(self) -> dict[str, dict]:
        """Of every file used, for the manifest: bytes and checksum, as far as known."""
        files = {name: self.source.files[name] for name in sorted({*self.small, *self.shard_of.values()})}
        return {name: {"bytes": file.n_bytes, "sha256": file.sha256 or ""} for name, file in files.items()}

    def _refuse(self, problem: str, hint: str = "", config: dict | None = None, tensors: Collection[str] = ()) -> None:
        """ModelError: another kind of checkpoint if it is one, else the problem."""
        raise self.source.foreign(config, tensors) or ModelError(f"{self.source.repo}: {problem}", hint)

    def _fetch_small(self, staging: Path, needed: Iterable[str]) -> dict[str, Path]:
        source = self.source
        if "config.json" not in self.small:
            self._refuse("no config.json, so not an official checkpoint")
        huge = next((name for name, n_bytes in self.small.items() if n_bytes > jsonfile.MAX_BYTES), None)
        if huge is not None:  # they come before the disk is checked
            self._refuse(f"{huge} is larger than {jsonfile.MAX_BYTES >> 20} MiB")
        begin, got = time.monotonic(), sum(source.missing(name, staging) for name in self.small)
        paths = {name: self.fetch(name, staging) for name in self.small}
        pointer = next((name for name, path in paths.items() if kinds.is_pointer(path)), None)
        if pointer is not None:
            raise kinds.lfs_pointer(source.repo, pointer)
        if got >= RATE_FROM:
            self.rate = got / (time.monotonic() - begin)
        absent = next((name for name in (*NEEDED, *needed) if name not in self.small), None)
        if absent is not None:
            config = kinds.read_config(paths["config.json"])
            hint = f"put the {absent} of the release into a folder with the weights, and use that"
            self._refuse(f"no {absent}", hint, config=config)
        return paths

    def _config(self, path: Path) -> V4Config:
        try:
            return V4Config.load(path)
        except ModelError as problem:
            message = str(problem).removeprefix(f"{path}: ")
            self._refuse(f"config.json: {message}", problem.hint, config=kinds.read_config(path))

    def _index(self, path: Path | None, staging: Path) -> dict[str, str]:
        if path is not None:
            index = jsonfile.read(path)
            listed = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
                self._refuse(f"{INDEX}: weight_map is not a map of names to files")
            return listed
        if SINGLE not in self.source.files:
            self._refuse(f"neither {INDEX} nor {SINGLE}, so not an official checkpoint")
        found = self._header(SINGLE, staging)
        return dict.fromkeys(found[0] if found else read_header(self.fetch(SINGLE, staging)), SINGLE)

    def fetch(self, name: str, staging: Path) -> Path:
        """A file that is needed at once."""
        return self.source.fetch(name, staging, lambda n: None, lambda: False)

    def look_ahead(self, shards: Iterable[str], staging: Path, jobs: int) -> None:
        """Check the headers of shards that are still to come, as far as they can be had without the rest: what is wrong
        with the last shard would else be found after hours. ModelError."""
        stop = threading.Event()
        with ThreadPoolExecutor(jobs) as pool:
            try:
                headers = pool.map(lambda shard: self._header(shard, staging, stop.is_set), shards)
                for shard, found in zip(shards, headers):
                    if found is not None:
                        header, begin = found
                        self._check(shard, header)
                        end, size = (
                            begin + sum(spec.nbytes for spec in header.values()),
                            self.source.files[shard].n_bytes,
                        )
                        if end != size:
                            self._refuse(f"{shard}: {size} bytes, but its header describes {end}")
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _header(self, shard: str, staging: Path, cancelled: Cancelled = lambda: False):
        """Tensors of a shard, and where their data begins, from its first bytes; None if the network does not give
        them now."""
        size = self.source.files[shard].n_bytes
        try:
            data = self.source.beginning(shard, min(size, FIRST_BYTES), staging, cancelled)
            length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
            if 2 <= length <= min(jsonfile.MAX_BYTES, size - 8) and 8 + length > len(data):
                data = self.source.beginning(shard, 8 + length, staging, cancelled)
        except NetworkError:
            return None
        if not 2 <= length <= min(jsonfile.MAX_BYTES, size - 8):
            if data.startswith(jsonfile.LFS_POINTER):
                raise kinds.lfs_pointer(self.source.repo, shard)
            self._refuse(f"{shard}: not a safetensors file, or truncated ({size} bytes)")
        header = jsonfile.parse(data[8 : 8 + length], f"{self.source.repo}: {shard}: header")
        try:
            header.pop("__metadata__", None)
            specs = {name: TensorSpec(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
            return specs, 8 + length
        except (AttributeError, KeyError, TypeError):
            self._refuse(f"{shard}: not a safetensors file")

    def _check(self, shard: str, header: Mapping[str, TensorSpec]) -> None:
        """A shard must hold exactly what index and config say."""
        where = f"{shard}: tensor"
        for name, spec in header.items():
            if self.shard_of.get(name) != shard or spec != self.expected[name]:
                told = f" (it is {spec.dtype} {list(spec.shape)})" if name in self.expected else ""
                self._refuse(f"{where} {name[:200]} is not what config and index say{told}")
        absent = next((name for name, home in self.shard_of.items() if home == shard and name not in header), None)
        if absent is not None:
            self._refuse(f"{where} {absent} is missing, though {INDEX} lists it")

    def read_shard(self, shard: str, path: Path) -> dict[str, TensorPlace]:
        """Places of the tensors of a shard that is here. ModelError."""
        places = read_header(path)
        self._check(shard, {name: place.spec for name, place in places.items()})
        return places
