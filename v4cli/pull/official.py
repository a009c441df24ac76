"""A checkpoint that need not be here: its small files, index and headers, checked before hours of work.

It is an official one, or one without scales (`plain`), in BF16 or F32 and perhaps under the names of transformers, or
GGUF files; of those, too, everything is called and described officially from here on.
"""

import json
import struct
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from v4cli import jsonfile
from v4cli.errors import ModelError, NetworkError
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec, expected_tensors
from v4cli.pull.gguf_source import GgufSource
from v4cli.pull.hub import Source
from v4cli.pull.transfer import Cancelled
from v4cli.store import gguf, kinds, transformers
from v4cli.store.checkpoint import INDEX, SINGLE
from v4cli.store.header import TensorPlace, read_header
from v4cli.store.recipe import EXPERTS
from v4cli.store.store import NEEDED, SMALL
from v4cli.store.verify import NO_READERS, Readers

RATE_FROM = 1 << 20  # small files of fewer bytes do not tell how fast the network is
GGUF = ".gguf"
NO_FLOATS = ("F8_E4M3", "F8_E8M0", "I8", "U8")  # codes and scales, which mean nothing alone
FIRST_BYTES = 256 << 10  # of a shard: holds most headers


class Official:
    """What a source offers, read once; everything else follows from config and index."""

    def __init__(self, source: Source, staging: Path, readers: Readers = NO_READERS, needed: Iterable[str] = ()):
        """Fetch what is small into `staging`. ModelError unless the source has every tensor, every shard and every
        small file that a store needs, and those in `needed`; or says what it is instead."""
        self.source = source
        self.rate: float | None = None  # bytes per second
        self.plain = self.gguf = self.translates = False
        self.small = {name: source.files[name].n_bytes for name in (*SMALL, INDEX) if name in source.files}
        paths = self._fetch_small(staging, needed)
        listed = self._index(paths.get(INDEX), staging)  # tensor, as the source calls it -> shard
        self.gguf = any(shard.endswith(GGUF) for shard in listed.values())
        self.plain = not self.gguf and transformers.is_plain(listed)
        self.translates = self.plain or self.gguf  # values may then be in BF16 or F32 where the official ones are not
        self.config = self._config(paths["config.json"])
        self.shard_of = self._named(listed)  # tensor -> shard
        self.with_mtp = any(name.startswith("mtp.") for name in self.shard_of)
        self.expected: dict[str, TensorSpec] = {
            name: spec for name, spec in expected_tensors(self.config, self.with_mtp).items() if self._has_scale(name)
        }
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
        found = None if self.translates else self.source.foreign(config, tensors)
        raise found or ModelError(f"{self.source.repo}: {problem}", hint)

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

    def _has_scale(self, name: str) -> bool:
        """Whether the source has this tensor, if it is a scale."""
        return not name.endswith(".scale") or not self.translates or (self.gguf and EXPERTS in name)

    def _named(self, listed: Mapping[str, str]) -> dict[str, str]:
        if not self.plain:
            return {name: shard for name, shard in listed.items() if not self._left_out(name)}
        found: dict[str, str] = {}
        for name, shard in listed.items():
            for official in transformers.official_names(name, self.config.n_routed_experts):
                if official in found:
                    self._refuse(f"tensor {name[:200]} is there twice, as {official[:200]}")
                found[official] = shard
        return found

    def small_file(self, name: str, staging: Path) -> bytes:
        """A small file as a store has it: of other programs' config.json what it means officially."""
        if name == "config.json" and self.plain:
            return (json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n").encode()
        return self.fetch(name, staging).read_bytes()

    def _config(self, path: Path) -> V4Config:
        try:
            if self.plain and isinstance(data := jsonfile.read(path, limit=jsonfile.SMALL), dict):
                if "quantization_config" not in data or "rope_parameters" in data:
                    return V4Config.from_dict(transformers.as_official(data), str(path))
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
        if isinstance(self.source, GgufSource):
            shards = sorted(name for name in self.source.files if name.endswith(GGUF))
            return {name: shard for shard in shards for name in gguf.read(self.fetch(shard, staging)).places}
        if SINGLE not in self.source.files:
            self._refuse(f"neither {INDEX} nor {SINGLE}, so not an official checkpoint")
        found = self._header(SINGLE, staging)
        return dict.fromkeys(found if found else read_header(self.fetch(SINGLE, staging)), SINGLE)

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
                        self._official(shard, found)
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _header(self, shard: str, staging: Path, cancelled: Cancelled = lambda: False):
        """Places of the tensors of a shard, from its first bytes; None if the network does not give them now."""
        if shard.endswith(GGUF):  # those are on this disk
            return gguf.read(self.fetch(shard, staging)).places
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
            end = 8 + length + sum(spec.nbytes for spec in specs.values())
        except (AttributeError, KeyError, TypeError):
            self._refuse(f"{shard}: not a safetensors file")
        if end != size:
            self._refuse(f"{shard}: {size} bytes, but its header describes {end}")
        return {name: TensorPlace(Path(shard), 0, spec) for name, spec in specs.items()}

    def _official(self, shard: str, places: Mapping[str, TensorPlace]) -> dict[str, TensorPlace]:
        """Places by official name of a shard, which must hold exactly what index and config say."""
        where, found = f"{shard}: tensor", {}
        for name, place in self._translated(places).items():
            spec, official = place.spec, self.expected.get(name)
            alone = self.plain and spec.dtype in NO_FLOATS
            self.translates &= not alone  # then it is neither kind
            fits = official is not None and self.shard_of.get(name) == shard and not alone
            if not fits or (spec != official and not (self.translates and transformers.stands_for(spec, official))):
                told = f" (it is {spec.dtype} {list(spec.shape)})" if official is not None else ""
                problem = f"{where} {name[:200]} is not what config and index say{told}"
                self._refuse(problem, tensors=self.shard_of if alone else ())
            found[name] = replace(place, official=official.dtype)
        absent = next((name for name, home in self.shard_of.items() if home == shard and name not in found), None)
        if absent is not None:
            self._refuse(f"{where} {absent} is missing, though {INDEX} lists it")
        return found

    def _translated(self, places: Mapping[str, TensorPlace]) -> Mapping[str, TensorPlace]:
        if self.plain:
            return transformers.translated(places, self.config.n_routed_experts)
        return {name: place for name, place in places.items() if not self._left_out(name)}

    def _left_out(self, name: str) -> bool:
        """Draft blocks in GGUF files, which are layers there and have other matrices."""
        words = name.split(".")
        return self.gguf and words[0] == "layers" and int(words[1]) >= self.config.num_hidden_layers

    def read_shard(self, shard: str, path: Path) -> dict[str, TensorPlace]:
        """Places of the tensors of a shard that is here. ModelError."""
        return self._official(shard, gguf.read(path).places if self.gguf else read_header(path))
