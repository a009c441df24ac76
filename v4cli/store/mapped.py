"""Tensors of a model read as views of mapped safetensors files: what official checkpoints and stores share."""

import math
from functools import cached_property
from pathlib import Path

from v4kernels.formats import OFFICIAL, Format, finite

from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.model.schema import TensorSpec
from v4cli.store import fingerprint
from v4cli.store.header import TensorPlace

PIECE = 1 << 24  # bytes of a tensor that are looked at together


class MappedTensors:
    """Config and the place of every tensor."""

    def __init__(self, path: Path, config: V4Config, places: dict[str, TensorPlace]):
        self.path = path
        self.config = config
        self.places = places
        self._maps: dict[Path, object] = {}

    @property
    def has_drafts(self) -> bool:
        """Whether draft blocks are there."""
        return "mtp.0.attn.attn_sink" in self.places

    def spec(self, name: str) -> TensorSpec:
        return self.places[name].spec

    def official_dtype(self, name: str) -> str:
        """dtype of the tensor in the official checkpoint: decides how its input is treated."""
        return self.spec(name).dtype

    def form(self, name: str) -> Format:
        """Format that a matrix is stored in."""
        return OFFICIAL[self.spec(name).dtype]

    @cached_property
    def nbytes(self) -> int:
        """Payload bytes of all tensors."""
        return sum(place.spec.nbytes for place in self.places.values())

    @cached_property
    def fingerprint(self) -> dict:
        """What tells these weights from any others (store/fingerprint.py). ModelError for an unreadable file."""
        return {"content": fingerprint.content(self.places), "files": self.stamps()}

    def stamps(self) -> dict[str, list[int]]:
        """Size and times of every file of weights, as they are now. ModelError."""
        return fingerprint.stamps(list({place.path for place in self.places.values()}))

    def hold(self, path: Path, data) -> None:
        """Take the tensors of a file from `data`, its bytes as a numpy array, instead of mapping it."""
        self._maps[path] = data

    def raw(self, name: str):
        """The stored bytes as a numpy array, mapped from the file."""
        import numpy as np

        place = self.places[name]
        if place.path not in self._maps:
            try:
                self._maps[place.path] = np.memmap(place.path, dtype=np.uint8, mode="c")
            except (OSError, ValueError) as problem:
                raise ModelError(f"{place.path}: cannot be mapped ({problem})") from None
        data = self._maps[place.path][place.offset : place.offset + place.spec.nbytes]
        if len(data) != place.spec.nbytes:
            raise ModelError(f"{place.path}: tensor {name} is cut off; the file changed while in use")
        # safetensors aligns the data, a hostile file need not
        return data.copy() if place.offset % 8 else data

    def tensor(self, name: str):
        """The stored torch tensor, mapped from the file."""
        import torch

        dtypes = {
            "F8_E4M3": torch.float8_e4m3fn,
            "F8_E8M0": torch.float8_e8m0fnu,
            "I8": torch.int8,
            "U8": torch.uint8,
            "BF16": torch.bfloat16,
            "F32": torch.float32,
            "I64": torch.int64,
        }
        place = self.places[name]
        return torch.from_numpy(self.raw(name)).view(dtypes[place.spec.dtype]).view(place.spec.shape)

    def dense(self, name: str, rows=None):
        """A tensor's values in fp32, decoded from its format. ModelError if any is not finite. `rows` (n,), a tensor:
        just these, of a format in which each has scales of its own."""
        import torch

        from v4cli.store import formats

        def some(name: str):
            whole = self.tensor(name)
            return whole if rows is None else whole.view(torch.uint8)[rows].view(whole.dtype)

        tensor, form = some(name), self.form(name)
        if form.scale:
            tensor = formats.decode(form.name, tensor, some(name.removesuffix("weight") + "scale"))
        return self.finite(name, tensor.float())

    def all_finite(self, name: str) -> bool:
        """Whether every stored value is finite, scales each for itself; integers are. Reads the tensor in pieces."""
        spec, raw = self.spec(name), self.raw(name)
        if name.endswith(".scale") and (form := self.form(name.removesuffix("scale") + "weight")).row_scale:
            return form.finite_scales(raw, spec.shape[0])
        dtype = spec.dtype
        return all(finite(dtype, raw[first : first + PIECE]) for first in range(0, len(raw), PIECE))

    def ids(self, name: str):
        """The experts that a hash layer names, int64 as stored. ModelError if one is not there."""
        import numpy as np

        values = self.raw(name).view(np.int64).reshape(self.spec(name).shape)
        if values.size and not 0 <= values.min() <= values.max() < self.config.n_routed_experts:
            raise ModelError(f"{self.places[name].path}: tensor {name} names experts that are not there")
        return values

    def finite(self, name: str, values):
        """`values`, or ModelError if one is not finite."""
        if values.numel() and not all(math.isfinite(value) for value in values.aminmax()):  # NaN is both
            raise ModelError(f"{self.places[name].path}: tensor {name} holds values that are not finite")
        return values
