"""Make a store from a source: fetch shards, convert each part as soon as its shards are here, drop what is done with.

All state is on disk: a part is finished when the manifest has its record and its file has that size, and shards that
are partly here lie in STAGING. So calling again is how everything is resumed and repaired, and `kill -9` loses at
most the parts and shards in flight. Shards are fetched by threads, parts are converted in the caller's.
"""

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from v4cli import hardware
from v4cli.errors import Interrupted, ModelError, ResourceError, UsageError
from v4cli.files import size, write_atomically
from v4cli.pull.fetcher import Fetcher, Reporter
from v4cli.pull.hub import Source
from v4cli.pull.making import make_parts
from v4cli.pull.official import Official
from v4cli.pull.repack import repack
from v4cli.pull.sizes import Plan, Work, intact, open_manifest, unfinished
from v4cli.pull.transfer import AGAIN
from v4cli.store import store
from v4cli.store.calibration import Calibration
from v4cli.store.recipe import RECIPES, Named
from v4cli.store.record import expert_bits
from v4cli.store.store import MANIFEST, MANIFEST_COPY, NEEDED, SMALL, Manifest, is_store
from v4cli.store.verify import NO_READERS, Readers

STAGING = ".source"  # folder in the store while it is made; with keep_source it stays, an official checkpoint
REPAIR = ".repair"  # the same while a part of a finished store is made again


def pull(
    source: Source,
    dest: Path,
    recipe: Named | None = None,
    *,
    reporter: Reporter,
    jobs: int = 4,
    keep_source: bool = False,
    only: str | None = None,
    drafts: bool = True,
    readers: Readers = NO_READERS,
    calibration: Calibration | None = None,
) -> Plan | None:
    """Make the store `dest` of `source`, or go on making it; None if there was nothing to do.

    `recipe` defaults to that of the store, else native; `only` names one part or small file to make again. Without
    `drafts` the blocks that guess tokens are left out, as they are of a store that was begun so. `readers`
    open small files, by name, as whoever runs the model will; they raise ModelError before anything is converted.
    A `calibration` says how experts are rounded to low bits, and stays that of the store.
    Another pull into the same folder is waited for. Interrupted, NetworkError, ModelError, ResourceError, UsageError:
    what is finished stays, and the same call goes on; of a pull that had not come to anything nothing stays.
    """
    try:
        with lock(dest, reporter):
            repack(dest, reporter, jobs)
            job = _Pull(source, dest, recipe, reporter, jobs, keep_source, only, drafts, readers, calibration)
            return job.run()
    except KeyboardInterrupt:
        raise Interrupted("interrupted", AGAIN) from None
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(f"{dest}: the disk is full", "free some space, then " + AGAIN) from None


def plan_pull(
    source: Source,
    dest: Path,
    recipe: Named | None = None,
    *,
    reporter: Reporter,
    jobs: int = 4,
    keep_source: bool = False,
    only: str | None = None,
    drafts: bool = True,
    readers: Readers = NO_READERS,
    calibration: Calibration | None = None,
) -> Plan:
    """What `pull` would do now. Fetches small files and headers, changes nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        job = _Pull(source, dest, recipe, reporter, jobs, keep_source, only, drafts, readers, calibration)
        return job.plan(Work([], {}, jobs)) if job.is_done() else job.plan(job.work(Path(scratch)))


@contextmanager
def lock(dest: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the store against other pulls; says so if it has to wait. ResourceError if nothing can be written there."""
    from filelock import FileLock, Timeout

    if problem := hardware.not_writable(dest.parent):
        raise ResourceError(problem, "V4_HOME=DIR v4 pull NAME, or another DST of v4 quantize")
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

    def __init__(
        self, source: Source, dest: Path, recipe, reporter, jobs: int, keep_source: bool, only, drafts: bool, readers,
        calibration: Calibration | None = None,
    ):  # fmt: skip
        self.source, self.dest, self.reporter = source, Path(dest), reporter
        self.jobs, self.only, self.readers, self.drafts = jobs, only, readers, drafts
        self.calibration = calibration
        self.ours = is_store(dest) or not self.dest.exists()  # the folder itself, not only what is put into it
        self.manifest = self.begin(recipe)
        kept = self.manifest.complete and (self.dest / STAGING).exists()  # else it went before that was written
        self.keep_source = keep_source or kept
        self.staging = self.dest / (REPAIR if self.manifest.complete and only and not kept else STAGING)
        self.official: Official | None = None  # once it was read

    def begin(self, recipe: Named | None) -> Manifest:
        """The manifest of the store if it has the same source and recipe, or a new one."""
        dest, source = self.dest, self.source
        manifest = open_manifest(dest)
        if manifest is None:
            strange = [p for p in dest.iterdir() if not p.name.startswith(".")] if dest.is_dir() else []
            if any(path.suffix != ".tmp" for path in strange):
                raise UsageError(f"{dest}: not a store, and not empty", "choose another name or folder")
            if self.only:
                raise UsageError(f"{dest}: no store to repair", "pull without --part")
            recipe = recipe or RECIPES["native"]
            about = {"repo": source.repo, "revision": source.revision, "files": {}}
            if self.calibration is not None:
                about["calibration"] = self.calibration.record
            return Manifest(recipe.name, False, about, recipe=recipe.data)
        if manifest.layout != store.LAYOUT:
            raise ModelError(f"{dest.name} has layout {manifest.layout}", "v4 pull without --dry-run repacks it")
        hint = f"choose another name or folder, or first: v4 rm {dest.name}"
        if recipe is not None and recipe.name != manifest.quant:
            raise UsageError(f"{dest.name} is {manifest.quant}, not {recipe.name}", hint)
        if recipe is not None and manifest.named and recipe.rules != manifest.named.rules:
            raise UsageError(f"{dest.name} is by another recipe called {recipe.name}", hint)
        self.calibration = self._same_calibration(manifest, hint)
        if not self.drafts and manifest.with_mtp:
            raise UsageError(f"{dest.name} has the blocks that --no-drafts leaves out", hint)
        repo, revision = manifest.source["repo"], manifest.source["revision"]
        if repo == source.repo:
            source.pin(revision)
        if revision != source.revision:
            stay = "" if source.repo.startswith("/") else f"--revision {revision}, "
            message = f"{dest.name} was made from {repo} {revision[:20]}, this is {source.repo} {source.revision[:20]}"
            raise UsageError(message, stay + hint)
        return manifest

    def _same_calibration(self, manifest: Manifest, hint: str) -> Calibration | None:
        """The one that the store was begun with, which need not be named again. UsageError for another one."""
        recorded, given = manifest.source.get("calibration"), self.calibration
        if recorded is None and given is not None:
            raise UsageError(f"{self.dest.name} was begun without a calibration", hint)
        if recorded is None or (manifest.complete and not self.only):
            return given
        used = given or Calibration.open(Path(recorded["file"]))
        if used.sha256 != recorded["sha256"]:
            raise UsageError(f"{self.dest.name} was begun with another calibration than {used.path}", hint)
        return used

    def is_done(self) -> bool:
        """Whether the store is complete and nothing of it is missing."""
        files = (*self.manifest.files, *NEEDED)
        return self.manifest.complete and not self.only and all(intact(self.dest, f, self.manifest) for f in files)

    def run(self) -> Plan | None:
        """Everything, under the lock."""
        if self.is_done():
            self.manifest.save(self.dest)  # where one of it and its copy was damaged or older, both are right again
            self.clean()
            self.reporter.say(f"{self.dest.name} is complete, nothing to do")
            return None
        try:
            return self.bring()
        except BaseException:
            self.leave_nothing_empty()
            raise

    def bring(self) -> Plan:
        """What is not there yet."""
        manifest = self.manifest
        self.dest.mkdir(parents=True, exist_ok=True)
        if not is_store(self.dest):
            manifest.save(self.dest)  # whatever happens from now on, the folder tells where it comes from
        work = self.work(self.staging)
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

    def leave_nothing_empty(self) -> None:
        """After a failure: remove a store without any part, and without any piece of a shard to go on from."""
        kept = [*self.dest.glob("*.safetensors"), *(self.dest / STAGING).glob("*.safetensors")]
        if self.manifest.complete or any(size(path) for path in kept):
            return
        if self.ours:
            shutil.rmtree(self.dest, ignore_errors=True)
            return
        for name in (MANIFEST_COPY, MANIFEST, *SMALL):
            (self.dest / name).unlink(missing_ok=True)
        self.clean(staging=True)

    def clean(self, staging: bool = False) -> None:
        """Remove what only the making needed."""
        for left in self.dest.glob("*.tmp"):
            left.unlink()
        shutil.rmtree(self.dest / REPAIR, ignore_errors=True)
        if staging or not self.keep_source:
            shutil.rmtree(self.dest / STAGING, ignore_errors=True)

    def work(self, staging: Path) -> Work:
        """What is to be made, after a look at the source."""
        needed = (self.only,) if self.only in SMALL else ()
        self.official = official = Official(self.source, staging, self.readers, needed)
        manifest = self.manifest
        if self.calibration is not None:
            self.calibration.check(official.config)
        if not manifest.formats or (manifest.with_mtp and not official.with_mtp):
            manifest.with_mtp = official.with_mtp and self.drafts
            manifest.choose(official.config)
        manifest.source["files"] = official.record
        parts = manifest.parts(official.config, self.dest)
        work = Work(unfinished(parts, self.dest, self.manifest, self.only), official.shard_of, self.jobs)
        official.look_ahead(work.order, self.staging, self.jobs)
        return work

    def plan(self, work: Work) -> Plan:
        """What `work` means for network and disk."""
        sizes = {shard: self.source.files[shard].n_bytes for shard in work.order}
        missing = {shard: self.source.missing(shard, self.staging) for shard in work.order}
        staged = {shard: size(self.staging / shard) for shard in work.order}
        bits = expert_bits(self.manifest.formats)
        about = (self.source.repo, self.source.revision, self.manifest.quant, bits)
        rate, small = (self.official.rate, self.small_bytes()) if self.official else (None, 0)
        return work.plan(about, sizes, missing, staged, self.keep_source, self.dest, rate, small)

    def small_bytes(self) -> int:
        """Disk that small files still take in the store."""
        return sum(n for name, n in self.official.small.items() if not self.has(name))

    def has(self, name: str) -> bool:
        """Whether the store has this small file as it should be."""
        return name not in SMALL or (self.only != name and intact(self.dest, name, self.manifest))

    def keep_small_files(self) -> None:
        """Copy the source's small files into the store."""
        for name in self.official.small:
            if not self.has(name):
                data = self.official.small_file(name, self.staging)
                write_atomically(self.dest / name, data)
                self.manifest.files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.manifest.save(self.dest)

    def make(self, work: Work) -> None:
        """Fetch and convert, until no part is left."""
        with Fetcher(self.source, self.staging, work, self.jobs, self.reporter) as fetcher:
            make_parts(fetcher, self.official.read_shard, self.dest, self.manifest, not self.keep_source,
                       self.calibration)  # fmt: skip
