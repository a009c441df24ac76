"""An official checkpoint on disk: config, index and shards, checked as a whole before any tensor is read.

`open` reads headers only. Tensors are views of the mapped files. Draft blocks (mtp.*) are recognised and kept
aside; a trunk without them is complete.
"""

import os
from pathlib import Path

from v4cli import jsonfile
from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.model.schema import expected_tensors
from v4cli.store import kinds
from v4cli.store.header import TensorPlace, read_header
from v4cli.store.mapped import MappedTensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint(MappedTensors):
    """An opened official checkpoint."""

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read and validate folder `path`. ModelError names the file and the tensor."""
        path = Path(path)
        if not path.is_dir():
            raise ModelError(f"{path}: no such model folder")
        try:
            config = V4Config.load(path)
            places = _read_places(path)
            _check(path, config, places)
        except ModelError as problem:
            raise kinds.of_folder(path) or problem from None
        return cls(path, config, places)


def _read_places(path: Path) -> dict[str, TensorPlace]:
    """Headers of all shards, held against the index."""
    if not (path / INDEX).exists():
        if not (path / SINGLE).exists():
            raise ModelError(f"{path}: neither {INDEX} nor {SINGLE}", "v4 ls shows the models that are complete")
        return read_header(path / SINGLE)
    index = jsonfile.read(path / INDEX)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
        raise ModelError(f"{path / INDEX}: weight_map is missing or not a map of names to files")
    places: dict[str, TensorPlace] = {}
    for shard in sorted(set(listed.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors") or "\0" in shard:
            raise ModelError(f"{path / INDEX}: {shard[:80]!r} is not a plain .safetensors file name")
        if not os.path.isfile(path / shard):
            raise ModelError(f"{path / shard}: missing shard, named by {INDEX}")
        for name, place in read_header(path / shard).items():
            if listed.get(name) != shard:
                raise ModelError(f"{path / shard}: holds tensor {name[:200]}, which {INDEX} does not place there")
            places[name] = place
    absent = next((name for name in listed if name not in places), None)
    if absent is not None:
        raise ModelError(f"{path / listed[absent]}: tensor {absent[:200]} is missing, though {INDEX} lists it")
    return places


def _check(path: Path, config: V4Config, places: dict[str, TensorPlace]) -> None:
    """Exactly the tensors the config asks for, each of the right dtype and shape."""
    expected = expected_tensors(config, with_mtp=any(name.startswith("mtp.") for name in places))
    for name, spec in expected.items():
        place = places.get(name)
        if place is None:
            raise ModelError(f"{path}: tensor {name} is missing")
        if place.spec != spec:
            have, want = place.spec, spec
            raise ModelError(
                f"{place.path}: tensor {name} is {have.dtype} {list(have.shape)}, "
                f"the config asks for {want.dtype} {list(want.shape)}"
            )
    extra = next((name for name in places if name not in expected), None)
    if extra is not None:
        raise ModelError(f"{places[extra].path}: tensor {extra[:200]} does not belong to this model")
