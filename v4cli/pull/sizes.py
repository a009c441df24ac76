"""What pulling a model means for network and disk, before a byte moves."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from v4cli import hardware
from v4cli.errors import ModelError, ResourceError, UsageError
from v4cli.files import size
from v4cli.model.known import MODELS, known_config
from v4cli.model.schema import expected_tensors
from v4cli.store.parts import Part, lay_out
from v4cli.store.recipe import RECIPES, Named, check, formats_by
from v4cli.store.record import expert_bits, recorded
from v4cli.store.store import MANIFEST, MANIFEST_COPY, SMALL, Manifest


@dataclass(frozen=True)
class Plan:
    """What a pull will do, in bytes."""

    repo: str
    revision: str
    quant: str
    bits: float | None  # of a weight of the routed experts, on average
    parts: int  # to make
    shards: int  # needed for them
    read: int  # all bytes of these shards
    fetched: int  # those of them that are not on this disk yet
    written: int
    freed: int  # shards removed again on the way
    peak: int  # most disk taken beyond today's
    free: int  # on the disk of the store
    rate: float | None = None  # bytes per second the source gave so far

    def check(self, dest: Path) -> None:
        """ResourceError if the disk cannot hold it, or cannot be written."""
        if problem := hardware.not_writable(dest):
            raise ResourceError(problem, "V4_HOME=DIR v4 pull NAME, or another DST of v4 quantize")
        if self.peak > self.free:
            message = f"{dest}: {self.peak:,} bytes of disk needed, {self.free:,} are free"
            raise ResourceError(message, "free some space, fewer --jobs, or V4_HOME on another disk")


class Work:
    """Which parts are to be made from which shards, in order."""

    def __init__(self, parts: Iterable[Part], shard_of: dict[str, str], jobs: int):
        self.parts = list(parts)
        self.limit = jobs + 1  # shards held at once, unless a single part needs more
        self.needs = {
            part.name: tuple(dict.fromkeys(shard_of[n] for n in (*part.sources, *part.tensors) if n in shard_of))
            for part in self.parts
        }
        self.order = self.wanted(self.parts)

    def wanted(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Shards that any of these parts needs, by first need."""
        return tuple(dict.fromkeys(shard for part in parts for shard in self.needs[part.name]))

    def peak(self, missing: dict[str, int], freed: dict[str, int]) -> int:
        """Most bytes taken at any time; of a shard `missing` come before and `freed` go after its last use."""
        taken = most = 0
        held, ahead = [], list(self.order)
        for i, part in enumerate(self.parts):
            while ahead and (len(held) < self.limit or not set(self.needs[part.name]).isdisjoint(ahead)):
                held.append(ahead.pop(0))
                taken += missing[held[-1]]
            taken += part.n_bytes
            most = max(most, taken)
            later = set(self.wanted(self.parts[i + 1 :]))
            taken -= sum(freed[shard] for shard in held if shard not in later)
            held = [shard for shard in held if shard in later]
        return most

    def plan(
        self,
        about: tuple[str, str, str, float | None],
        sizes: dict[str, int],
        missing: dict[str, int],
        staged: dict[str, int],
        keep_source: bool,
        dest: Path,
        rate: float | None = None,
        small: int = 0,
    ) -> Plan:
        """`about`: repo, revision, quant, bits. By shard: its size, bytes to fetch, bytes in the staging folder
        already. `small`: bytes of disk for everything else."""
        freed = {shard: 0 if keep_source else missing[shard] + staged[shard] for shard in self.order}
        return Plan(
            *about,
            parts=len(self.parts),
            shards=len(self.order),
            read=sum(sizes[shard] for shard in self.order),
            fetched=sum(missing[shard] for shard in self.order),
            written=sum(part.n_bytes for part in self.parts),
            freed=sum(freed.values()),
            peak=small + self.peak(missing, freed),
            free=hardware.disk_free(dest),
            rate=rate,
        )


def open_manifest(dest: Path) -> Manifest | None:
    """The manifest of a store, or else its copy; None if there is no store. ModelError if both are damaged."""
    here = [name for name in (MANIFEST, MANIFEST_COPY) if (dest / name).exists()]
    for name in here:
        try:
            return Manifest.load(dest, name)
        except ModelError:
            if name == here[-1]:
                raise ModelError(
                    f"{dest}: the manifest is damaged, so nothing can be trusted",
                    f"v4 rm {dest.name}, then pull it again",
                ) from None
    return None


def unfinished(parts: dict[str, Part], dest: Path, manifest: Manifest | None, only: str | None = None) -> list[Part]:
    """Parts to make: those not finished, or just `only` (none for a small file). UsageError if there is no such."""
    if only is None:
        return [part for part in parts.values() if manifest is None or not intact(dest, part.file, manifest)]
    name = only.removesuffix(".safetensors")
    if name not in parts and name not in SMALL:
        raise UsageError(f"{dest.name} has no part {only!r}", f"parts: {', '.join((*SMALL, *parts))}")
    return [parts[name]] if name in parts else []


def intact(dest: Path, file: str, manifest: Manifest) -> bool:
    """Whether a file of the store is as recorded: parts as far as their size tells, small files to the byte."""
    record, path = manifest.files.get(file), dest / file
    if record is None or size(path) != record["bytes"]:
        return False
    return file not in SMALL or hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]


def plan_known(
    name: str,
    dest: Path,
    recipe: Named | None = None,
    *,
    jobs: int = 4,
    keep_source: bool = False,
    only: str | None = None,
    drafts: bool = True,
) -> Plan:
    """What pulling a release into `dest` would do, without any network: from its built-in config, so headers of
    shards are not counted. Their division is the official one, one block each (spec 2.3)."""
    config = known_config(name)
    tensors = expected_tensors(config)
    manifest = open_manifest(dest)
    if manifest is not None and recipe in (None, manifest.named):
        quant, bits, parts = manifest.quant, expert_bits(manifest.formats), manifest.parts(config, dest)
    else:
        recipe, wanted = recipe or RECIPES["native"], expected_tensors(config, drafts)
        check(recipe, wanted)
        formats = formats_by(recipe.rules, wanted)
        quant, bits, parts = recipe.name, expert_bits(recorded(formats)), lay_out(wanted, formats)
    shard_of = {n: part.name.removesuffix("-experts") for part in parts.values() for n in part.sources}
    sizes = dict.fromkeys(shard_of.values(), 0)
    for tensor, shard in shard_of.items():
        sizes[shard] += tensors[tensor].nbytes
    work = Work(unfinished(parts, dest, manifest, only), shard_of, jobs)
    return work.plan((MODELS[name][0], "", quant, bits), sizes, sizes, dict.fromkeys(sizes, 0), keep_source, dest)
