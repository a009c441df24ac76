"""The parts of a store, byte by byte: the specification of its layout, version 2.

A store is a folder with `manifest.json`, the source's small files (config.json, tokenizer.json, ...) and parts. The
manifest records size and sha256 of every other file, and in `digest` that of its own text without this key: no byte
can change unnoticed. `manifest.copy.json` is the same once more, because without it the rest could not be trusted. A
part is a safetensors file; byte by byte:

    8 bytes    length of the header, little endian
    header     JSON (tensor name -> dtype, shape, data_offsets), padded with blanks so that data starts at a
               multiple of 4,096
    data       tensors in header order without holes; where alignment asks for one, a U8 tensor `pad.N` of zeros

| part                  | holds                                                   | alignment              |
|-----------------------|---------------------------------------------------------|------------------------|
| `embed`               | embed.weight                                            | each tensor 64         |
| `layer-LLL`           | all of layers.L but the routed experts                  | each tensor 64         |
| `layer-LLL-experts`   | layers.L.ffn.experts, expert by expert: w1.weight,      | each expert 4,096,     |
|                       | w1.scale, w3.weight, w3.scale, w2.weight, w2.scale      | its tensors packed     |
| `head`                | norm.weight, hc_head_*, head.weight                     | each tensor 64         |
| `mtp-M`, `...-experts`| the draft blocks, like layers                           |                        |

Names are the official ones. Every matrix has a number format, which `formats` in the manifest names
(store/record.py): for each matrix, by its name without `.weight`, and for a layer's experts together, as
`layers.L.ffn.experts.*.w1`, one name, or a list in the order of their numbers where they differ. One that has its
official format is kept, as is every tensor that is no matrix: official dtype, shape and bytes. Of the others [out, in]:

| format | `X.weight`                                                                  | `X.scale`                |
|--------|-----------------------------------------------------------------------------|--------------------------|
| int8   | I8 [out, in]                                                                | BF16 [out, in/32]        |
| int4   | U8 [out, in/2], even input in the low nibble, value = nibble - 8            | BF16 [out, in/32]        |
| fp4    | I8 [out, in/2], even input in the low nibble, e2m1 (official for experts)   | F8_E8M0 [out, in/32]     |
| q3     | U8 [out, in * 3/8], codes of 3 bits (v4kernels/formats.py)                  | U8 [out, 2 + in/32]      |
| q2     | U8 [out, in/4], codes of 2 bits (v4kernels/formats.py)                      | U8 [out, 2 + in/32]      |

weight = value * scale; in q3 and q2 scale is that of the row times a multiplier of 16 inputs. An expert is one aligned,
contiguous read, whatever its formats (as in the official checkpoint 13,369,344 bytes in Flash, 35,094,528 in Pro, no
padding).

`recipe` has the rules by which these formats were chosen, as a file of them has (store/recipe.py).

Layout 1 had no `formats`: its `quant`, native or q4, said them. Its parts are the same to the byte.
"""

import json
import struct
from dataclasses import dataclass, field
from functools import cached_property

from v4kernels.formats import OFFICIAL, Format

from v4cli.model.schema import TensorSpec, expected_tensors, stored_as
from v4cli.store.recipe import EXPERTS, KEEP, RECIPES, formats_by

PAGE = 4096
ALIGN = 64
EXPERT_ORDER = ("w1.weight", "w1.scale", "w3.weight", "w3.scale", "w2.weight", "w2.scale")


@dataclass(frozen=True)
class Stored:
    """One tensor of a part: its spec in the file, its byte offset there, and the official tensor it comes from."""

    spec: TensorSpec
    offset: int
    format: str  # of the matrix whose codes or scales it is; else keep; pad
    source: str  # official tensor; "" of a pad. Of scales the official ones, or X.weight if there are none


@dataclass
class Part:
    """One file of the store, completely known from config and recipe."""

    name: str
    tensors: dict[str, Stored] = field(default_factory=dict)
    end: int = 0  # of the data, counted from its start
    n_pads: int = 0

    @property
    def file(self) -> str:
        return self.name + ".safetensors"

    @cached_property
    def header(self) -> bytes:
        """Everything before the data."""
        entries = {
            name: {
                "dtype": t.spec.dtype,
                "shape": list(t.spec.shape),
                "data_offsets": [t.offset, t.offset + t.spec.nbytes],
            }
            for name, t in self.tensors.items()
        }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % PAGE)
        return struct.pack("<Q", len(text)) + text

    @property
    def n_bytes(self) -> int:
        """Size of the finished file."""
        return len(self.header) + self.end

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Official tensors needed to make it."""
        return tuple(dict.fromkeys(t.source for t in self.tensors.values() if t.source))

    def add(self, name: str, spec: TensorSpec, form: str, source: str, align: int) -> None:
        """Append a tensor at the next multiple of `align`."""
        gap = -self.end % align
        if gap:
            self.tensors[f"pad.{self.n_pads}"] = Stored(TensorSpec("U8", (gap,)), self.end, "pad", "")
            self.n_pads += 1
            self.end += gap
        self.tensors[name] = Stored(spec, self.end, form, source)
        self.end += spec.nbytes


def layout(config, quant: str, with_mtp: bool) -> dict[str, Part]:
    """Every part of a store that a recipe would make, by name, in file order."""
    official = expected_tensors(config, with_mtp)
    return lay_out(official, formats_by(RECIPES[quant].rules, official))


def lay_out(official: dict[str, TensorSpec], formats: dict[str, Format]) -> dict[str, Part]:
    """The same for a format of every matrix."""
    tensors: dict[str, tuple[TensorSpec, str, str]] = {}  # as stored: spec, format, source
    for name, spec in official.items():
        matrix = name.removesuffix("scale") + "weight" if name.endswith(".scale") else name
        if matrix not in formats:
            tensors[name] = spec, KEEP, name
        elif name == matrix:
            form = formats[name]
            for half, half_spec in stored_as(form, spec.shape[0], OFFICIAL[spec.dtype].cols(spec.shape[1])):
                stored = name.removesuffix("weight") + half
                tensors[stored] = half_spec, form.name, stored if stored in official else name
    parts: dict[str, Part] = {}
    for name in sorted(tensors, key=_rank):
        part = _part_of(name)
        if part not in parts:
            parts[part] = Part(part)
        parts[part].add(name, *tensors[name], _alignment(name))
    return parts


def _alignment(name: str) -> int:
    if EXPERTS not in name:
        return ALIGN
    return PAGE if name.endswith(EXPERT_ORDER[0]) else 1


def _part_of(name: str) -> str:
    words = name.split(".")
    if words[0] == "embed":
        return "embed"
    if words[0] not in ("layers", "mtp"):
        return "head"
    block = f"layer-{int(words[1]):03d}" if words[0] == "layers" else f"mtp-{words[1]}"
    return block + ("-experts" if words[2:4] == ["ffn", "experts"] else "")


def _rank(name: str):
    """Sort key: embed, layers, head, mtp; experts in EXPERT_ORDER; else the order of the schema (sort is stable)."""
    words = name.split(".")
    kind = {"embed": 0, "layers": 1, "mtp": 3}.get(words[0], 2)
    block = int(words[1]) if kind in (1, 3) else 0
    if words[2:4] == ["ffn", "experts"]:
        return kind, block, 1, int(words[4]), EXPERT_ORDER.index(".".join(words[5:]))
    return kind, block, 0, 0, 0
