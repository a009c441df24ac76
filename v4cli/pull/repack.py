"""A store of another layout becomes one of today's from its own files: no network, no second quantization.

The old parts move to OLD, the manifest last. Those that today's layout has just so move back, with their records; the
others go as new parts made of them replace them. Interrupted anywhere, the next call goes on.
"""

import shutil
from pathlib import Path

from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.pull.fetcher import Fetcher, Reporter
from v4cli.pull.making import make_parts
from v4cli.pull.sizes import Work, open_manifest, unfinished
from v4cli.pull.transfer import Cancelled, OnBytes, Partial, RemoteFile
from v4cli.store import store
from v4cli.store.header import read_header
from v4cli.store.parts import Part
from v4cli.store.record import expert_bits
from v4cli.store.store import MANIFEST, MANIFEST_COPY, SMALL, Manifest
from v4cli.system import replace, sync_folder

OLD = ".old"


class OldParts:
    """The set-aside parts as a source; a part is deleted when it is dropped."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.repo, self.revision = manifest.source["repo"], manifest.source["revision"]
        self.files = {
            name: RemoteFile(name, record["bytes"], record["sha256"])
            for name, record in manifest.files.items()
            if (folder / name).is_file()
        }

    def pin(self, revision: str) -> None:
        pass

    def missing(self, name: str, staging: Path) -> int:
        return 0

    def fetch(self, name: str, staging: Path, on_bytes: OnBytes, cancelled: Cancelled) -> Path:
        with Partial(self.files[name], self.folder / name, on_bytes, cancelled, "rb") as part:
            if not part.good():
                model = self.folder.parent.name
                raise ModelError(f"{self.folder / name}: damaged", f"v4 rm {model}, then pull it again")
        return self.folder / name

    def drop(self, name: str, staging: Path) -> None:
        (self.folder / name).unlink(missing_ok=True)


def repack(dest: Path, reporter: Reporter, jobs: int) -> None:
    """Bring the store `dest` to today's layout if it has another one. ModelError if it is unfinished or damaged,
    ResourceError if the disk cannot hold it."""
    manifest = open_manifest(dest)
    if manifest is not None and manifest.layout != store.LAYOUT:
        _set_aside(dest, manifest)
    old = open_manifest(dest / OLD)
    if old is None:
        return
    new = open_manifest(dest)
    if new is None:
        small = {name: record for name, record in old.files.items() if name in SMALL}
        recipe = old.named.data if old.named else {}
        new = Manifest(old.quant, old.with_mtp, old.source, store.LAYOUT, False, old.formats, recipe, small)
        if not new.formats:
            new.choose(V4Config.load(dest))
        new.save(dest)
    reporter.say(f"{dest.name} has layout {old.layout}; repacking it to {store.LAYOUT} from what is here")
    parts = new.parts(V4Config.load(dest), dest)
    _take_over(dest, old, new, parts)
    source = OldParts(dest / OLD, old)
    home = {tensor: name for name in source.files for tensor in read_header(dest / OLD / name)}
    work = Work(unfinished(parts, dest, new), home, jobs)
    sizes = {name: file.n_bytes for name, file in source.files.items()}
    nothing = dict.fromkeys(sizes, 0)
    about = (new.source["repo"], new.source["revision"], new.quant, expert_bits(new.formats))
    plan = work.plan(about, sizes, nothing, sizes, False, dest)
    reporter.plan(plan)
    plan.check(dest)
    with Fetcher(source, dest / OLD, work, jobs, reporter) as fetcher:
        make_parts(fetcher, lambda name, path: read_header(path), dest, new, drop=True)
    new.complete = True
    new.save(dest)
    shutil.rmtree(dest / OLD)


def _set_aside(dest: Path, manifest: Manifest) -> None:
    """Move parts and manifests to OLD; what is there already was moved by a call that was stopped."""
    if manifest.layout > store.LAYOUT:
        message = f"{dest.name} has layout {manifest.layout}, of a newer v4cli; this version knows {store.LAYOUT}"
        raise ModelError(message, "upgrade v4cli, or choose another --name")
    if not manifest.complete:
        message = f"{dest.name} is unfinished and of layout {manifest.layout}, this version writes {store.LAYOUT}"
        raise ModelError(message, f"v4 rm {dest.name}, then pull it again")
    (dest / OLD).mkdir(exist_ok=True)
    parts = [name for name in manifest.files if name not in SMALL]
    for name in (*parts, MANIFEST_COPY, MANIFEST):
        if (dest / name).exists():
            replace(dest / name, dest / OLD / name)
    sync_folder(dest / OLD)
    sync_folder(dest)


def _take_over(dest: Path, old: Manifest, new: Manifest, parts: dict[str, Part]) -> None:
    """Move parts that are as today's layout has them back from OLD, after their records are in the manifest: a record
    whose part is not there yet means nothing."""
    same = [
        part.file
        for part in parts.values()
        if (dest / OLD / part.file).is_file() and _begins_with(dest / OLD / part.file, part)
    ]
    new.files.update({name: old.files[name] for name in same})
    new.save(dest)
    for name in same:
        replace(dest / OLD / name, dest / name)
    sync_folder(dest)


def _begins_with(path: Path, part: Part) -> bool:
    """Whether a file has a part's size and header, so its tensors in the same places."""
    with path.open("rb") as file:
        return path.stat().st_size == part.n_bytes and file.read(len(part.header)) == part.header
