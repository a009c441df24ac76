"""Make a store from a source: fetch shards, convert each part as soon as its shards are here, drop what is done with.

All state is on disk: a part is finished when the manifest has its record and its file has that size, and shards that
are partly here lie in STAGING. So calling again is how everything is resumed and repaired, and `kill -9` loses at
most the parts and shards in flight. Shards are fetched by threads, parts are converted in the caller's.
"""

import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from v4cli import jsonfile
from v4cli.config import V4Config
from v4cli.errors import Interrupted, ModelError, ResourceError, UsageError
from v4cli.files import write_atomically
from v4cli.weights import store
from v4cli.weights.checkpoint import INDEX, SINGLE
from v4cli.weights.fetcher import Fetcher, Reporter
from v4cli.weights.hub import Source
from v4cli.weights.making import make_parts
from v4cli.weights.pull_plan import SMALL, Plan, Work, intact, open_manifest, size, unfinished
from v4cli.weights.repack import repack
from v4cli.weights.safetensors_header import TensorPlace, read_header
from v4cli.weights.schema import TensorSpec, expected_tensors
from v4cli.weights.store import Manifest, Part, layout
from v4cli.weights.transfer import AGAIN

STAGING = ".source"  # folder in the store while it is made; with keep_source it stays, an official checkpoint
REPAIR = ".repair"  # the same while a part of a finished store is made again
RATE_FROM = 1 << 20  # small files of fewer bytes do not tell how fast the network is


def pull(
    source: Source,
    dest: Path,
    quant: str | None = None,
    *,
    reporter: Reporter,
    jobs: int = 4,
    keep_source: bool = False,
    only: str | None = None,
) -> Plan | None:
    """Make the store `dest` of `source`, or go on making it; None if there was nothing to do.

    `quant` defaults to what the store is, else native; `only` names one part or small file to make again. Another
    pull into the same folder is waited for. Interrupted, NetworkError, ModelError, ResourceError, UsageError: what
    is finished stays, and the same call goes on.
    """
    try:
        with lock(dest, reporter):
            repack(dest, reporter, jobs)
            return _Pull(source, dest, quant, reporter, jobs, keep_source, only).run()
    except KeyboardInterrupt:
        raise Interrupted("interrupted", AGAIN) from None
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(f"{dest}: the disk is full", "free some space, then " + AGAIN) from None


def plan_pull(
    source: Source,
    dest: Path,
    quant: str | None = None,
    *,
    reporter: Reporter,
    jobs: int = 4,
    keep_source: bool = False,
    only: str | None = None,
) -> Plan:
    """What `pull` would do now. Fetches config and index, changes nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        job = _Pull(source, dest, quant, reporter, jobs, keep_source, only)
        job.read_source(Path(scratch))
        return job.plan(job.work())


@contextmanager
def lock(dest: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the store against other pulls; says so if it has to wait."""
    from filelock import FileLock, Timeout

    dest.parent.mkdir(parents=True, exist_ok=True)
    guard = FileLock(dest.parent / f".{dest.name}.lock")
    try:
        guard.acquire(timeout=0)
    except Timeout:
        reporter.say(f"another pull of {dest.name} is running; waiting for it")
        guard.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        guard.release()


class _Pull:
    """One run of `pull`: a store, its source, and what is known about both."""

    def __init__(self, source: Source, dest: Path, quant, reporter, jobs: int, keep_source: bool, only: str | None):
        self.source, self.dest, self.reporter = source, Path(dest), reporter
        self.jobs, self.only = jobs, only
        self.manifest = self.begin(quant)
        kept = self.manifest.complete and (self.dest / STAGING).exists()  # else it went before that was written
        self.keep_source = keep_source or kept
        self.staging = self.dest / (REPAIR if self.manifest.complete and only and not kept else STAGING)
        self.shard_of: dict[str, str] = {}
        self.expected: dict[str, TensorSpec] = {}
        self.parts: dict[str, Part] = {}
        self.rate: float | None = None

    def begin(self, quant: str | None) -> Manifest:
        """The manifest of the store if it has the same source and quantization, or a new one."""
        dest, source = self.dest, self.source
        manifest = open_manifest(dest)
        if manifest is None:
            strange = [p for p in dest.iterdir() if not p.name.startswith(".")] if dest.is_dir() else []
            if any(path.suffix != ".tmp" for path in strange):
                raise UsageError(f"{dest}: not a store, and not empty", "choose another name or folder")
            if self.only:
                raise UsageError(f"{dest}: no store to repair", "pull without --part")
            return Manifest(quant or "native", False, {"repo": source.repo, "revision": source.revision, "files": {}})
        if manifest.layout != store.LAYOUT:
            raise ModelError(f"{dest.name} has layout {manifest.layout}", "v4 pull without --dry-run repacks it")
        hint = f"choose another name or folder, or first: v4 rm {dest.name}"
        if quant not in (None, manifest.quant):
            raise UsageError(f"{dest.name} is {manifest.quant}, not {quant}", hint)
        repo, revision = manifest.source["repo"], manifest.source["revision"]
        if repo == source.repo:
            source.pin(revision)
        if revision != source.revision:
            stay = "" if source.repo.startswith("/") else f"--revision {revision}, "
            message = f"{dest.name} was made from {repo} {revision[:20]}, this is {source.repo} {source.revision[:20]}"
            raise UsageError(message, stay + hint)
        return manifest

    def run(self) -> Plan | None:
        """Everything, under the lock."""
        manifest = self.manifest
        if manifest.complete and not self.only and all(intact(self.dest, file, manifest) for file in manifest.files):
            manifest.save(self.dest)  # where one of it and its copy was damaged or older, both are right again
            self.clean()
            self.reporter.say(f"{self.dest.name} is complete, nothing to do")
            return None
        self.dest.mkdir(parents=True, exist_ok=True)
        self.read_source(self.staging)
        work = self.work()
        plan = self.plan(work)
        self.reporter.plan(plan)
        plan.check(self.dest)
        manifest.complete = manifest.complete and self.only is not None
        manifest.save(self.dest)
        self.keep_small_files()
        self.make(work)
        if self.only is None or manifest.complete:
            self.clean()
            manifest.complete = True
            manifest.save(self.dest)
        return plan

    def clean(self) -> None:
        """Remove what only the making needed."""
        for left in self.dest.glob("*.tmp"):
            left.unlink()
        shutil.rmtree(self.dest / REPAIR, ignore_errors=True)
        if not self.keep_source:
            shutil.rmtree(self.dest / STAGING, ignore_errors=True)

    def read_source(self, staging: Path) -> None:
        """Config and index: what the store will be, and that the source has all it takes."""
        source = self.source
        small = [name for name in (*SMALL, INDEX) if name in source.files]
        if "config.json" not in small:
            raise ModelError(f"{source.repo}: no config.json, so not an official checkpoint")
        huge = next((name for name in small if source.files[name].n_bytes > jsonfile.MAX_BYTES), None)
        if huge is not None:  # they come before the disk is checked
            raise ModelError(f"{source.repo}: {huge} is larger than {jsonfile.MAX_BYTES >> 20} MiB")
        begin, got = time.monotonic(), sum(source.missing(name, staging) for name in small)
        paths = {name: self.fetch(name, staging) for name in small}
        if got >= RATE_FROM:
            self.rate = got / (time.monotonic() - begin)
        config = V4Config.load(paths["config.json"])
        self.shard_of = self.read_index(paths.get(INDEX), staging)
        with_mtp = any(name.startswith("mtp.") for name in self.shard_of)
        self.expected = expected_tensors(config, with_mtp)
        odd = sorted(self.expected.keys() ^ self.shard_of.keys())
        if odd:
            problem = "is missing" if odd[0] in self.expected else "does not belong to this model"
            raise ModelError(f"{source.repo}: tensor {odd[0][:200]} {problem} ({len(odd)} such)")
        used = sorted({*small, *self.shard_of.values()})
        absent = next((name for name in used if name not in source.files), None)
        if absent is not None:
            raise ModelError(f"{source.repo}: shard {absent[:200]} is missing, though {INDEX} names it")
        self.manifest.with_mtp = with_mtp
        files = {name: source.files[name] for name in used}
        self.manifest.source["files"] = {n: {"bytes": f.n_bytes, "sha256": f.sha256 or ""} for n, f in files.items()}
        self.parts = layout(config, self.manifest.quant, with_mtp)

    def read_index(self, path: Path | None, staging: Path) -> dict[str, str]:
        """Tensor -> shard."""
        if path is not None:
            index = jsonfile.read(path)
            listed = index.get("weight_map") if isinstance(index, dict) else None
            if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
                raise ModelError(f"{self.source.repo}: {INDEX}: weight_map is not a map of names to files")
            return listed
        if SINGLE not in self.source.files:
            raise ModelError(f"{self.source.repo}: neither {INDEX} nor {SINGLE}, so not an official checkpoint")
        return dict.fromkeys(read_header(self.fetch(SINGLE, staging)), SINGLE)

    def fetch(self, name: str, staging: Path) -> Path:
        """A file that is needed at once."""
        return self.source.fetch(name, staging, lambda n: None, lambda: False)

    def work(self) -> Work:
        return Work(unfinished(self.parts, self.dest, self.manifest, self.only), self.shard_of, self.jobs)

    def plan(self, work: Work) -> Plan:
        """What `work` means for network and disk."""
        sizes = {shard: self.source.files[shard].n_bytes for shard in work.order}
        missing = {shard: self.source.missing(shard, self.staging) for shard in work.order}
        staged = {shard: size(self.staging / shard) for shard in work.order}
        about = (self.source.repo, self.source.revision, self.manifest.quant)
        return work.plan(about, sizes, missing, staged, self.keep_source, self.dest, self.rate)

    def keep_small_files(self) -> None:
        """Copy the source's small files into the store."""
        for name in SMALL:
            if name in self.source.files and (not intact(self.dest, name, self.manifest) or self.only == name):
                data = self.fetch(name, self.staging).read_bytes()
                write_atomically(self.dest / name, data)
                self.manifest.files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.manifest.save(self.dest)

    def make(self, work: Work) -> None:
        """Fetch and convert, until no part is left."""
        with Fetcher(self.source, self.staging, work, self.jobs, self.reporter) as fetcher:
            make_parts(fetcher, self.read_shard, self.dest, self.manifest, drop=not self.keep_source)

    def read_shard(self, shard: str, path: Path) -> dict[str, TensorPlace]:
        """Places of a shard's tensors; it must hold exactly what index and config say."""
        places = read_header(path)
        where = f"{self.source.repo}: {shard}: tensor"
        for name, place in places.items():
            if self.shard_of.get(name) != shard or place.spec != self.expected[name]:
                raise ModelError(f"{where} {name[:200]} is not what config and index say")
        absent = next((name for name, home in self.shard_of.items() if home == shard and name not in places), None)
        if absent is not None:
            raise ModelError(f"{where} {absent} is missing, though {INDEX} lists it")
        return places
