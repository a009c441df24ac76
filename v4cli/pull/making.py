"""Shards become parts: each part is converted as soon as its shards are here, recorded, and the shards let go."""

from collections.abc import Callable
from pathlib import Path

from v4cli.pull.convert import convert_part
from v4cli.pull.fetcher import Fetcher, Reporter
from v4cli.store.calibration import Calibration
from v4cli.store.header import TensorPlace
from v4cli.store.parts import Part
from v4cli.store.store import Manifest


def make_parts(
    fetcher: Fetcher,
    read_shard: Callable[[str, Path], dict[str, TensorPlace]],
    dest: Path,
    manifest: Manifest,
    drop: bool,
    calibration: Calibration | None = None,
) -> None:
    """Convert every part of the fetcher's work as its shards land, and record it; `drop` shards done with."""
    work, places = fetcher.work, {}
    todo = list(work.parts)
    while todo:
        part = fetcher.next_part(todo)
        for shard in work.needs[part.name]:
            if shard not in places:
                places[shard] = read_shard(shard, fetcher.landed[shard])
        here = {name: place for shard in work.needs[part.name] for name, place in places[shard].items()}
        _convert(part, here, dest, manifest, fetcher.reporter, calibration)
        todo.remove(part)
        wanted = set(work.wanted(todo))
        for shard in [shard for shard in places if shard not in wanted]:
            del places[shard]
            fetcher.release(shard, drop)


def _convert(
    part: Part, places: dict[str, TensorPlace], dest: Path, manifest: Manifest, reporter: Reporter, calibration
) -> None:
    """One part, and its record in the manifest."""
    reporter.start(part.name, part.n_bytes, fetching=False)
    record = convert_part(part, places, dest / part.file, lambda n: reporter.advance(part.name, n), calibration)
    before = manifest.files.get(part.file)
    if before is not None and before["sha256"] != record["sha256"]:
        reporter.say(f"{part.name} is not what it was: its source has changed, or the record was wrong")
    manifest.files[part.file] = record
    manifest.save(dest)
    reporter.finish(part.name)
