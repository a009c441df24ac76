"""Binding of the CPU kernel library (include/v4k.h says what each function computes) by ctypes.

The library may be missing or of another version: `available()` is then False and `reason()` says why; nothing here
fails at import. Tensors are C-contiguous and on the CPU; every call releases the GIL. torch is imported by what takes
tensors, so that asking what this machine can do needs no second.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_double, c_float, c_int, c_int64, c_uint64, c_void_p
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v4kernels.formats import FORMATS, GROUP

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ABI_VERSION = 12  # of the functions, and of the bits of their results
KV_GROUP, KEY_GROUP = 64, 32  # values per scale of a KV entry, of an index key
SPARE_ROWS = 16  # V4K_SPARE_ROWS
ETIMEOUT, ESTOPPED, EFETCH = -4, -5, -6  # V4K_E codes that serve.py tells apart
LIBRARY = {"darwin": "libv4k.dylib", "win32": "libv4k.dll"}.get(sys.platform, "libv4k.so")


class Matrix(ctypes.Structure):
    """v4k_matrix."""

    _fields_ = (
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("format", c_int64),
    )


class FormatInfo(ctypes.Structure):
    """v4k_format_info."""

    _fields_ = (("name", c_char_p), ("code_bytes", c_int64), ("scale_bytes", c_int64), ("row_scale", c_int64))


class Expert(ctypes.Structure):
    """v4k_expert."""

    _fields_ = (("w1", Matrix), ("w3", Matrix), ("w2", Matrix))


def _structure(name: str, pointers: str = "", sizes: str = "", floats: str = "", matrices: str = "") -> Any:
    """A structure of v4k.h: matrices first, then pointers, sizes and floats."""
    kinds = ((matrices, Matrix), (pointers, c_void_p), (sizes, c_int64), (floats, c_float))
    return type(name, (ctypes.Structure,), {"_fields_": [(f, kind) for names, kind in kinds for f in names.split()]})


Hyper = _structure("Hyper", "base scale norm", "streams iters", "norm_eps eps", "fn")
Attention = _structure(
    "Attention", "q_norm kv_norm sink", "heads head_dim rope_dims groups window", "eps", "wq_a wq_b wkv wo_a wo_b"
)
Compressor = _structure("Compressor", "ape norm freqs", "ratio dims rope_dims index", "eps", "wkv wgate")
Compressed = _structure("Compressed", "tail_kv tail_gate entries scales", "slots on_disk")
Indexer = _structure("Indexer", "", "heads dims rope_dims top_k", "", "wq_b weights_proj")
AttentionLayer = _structure("AttentionLayer", "attention compressor keys indexer", "number")
Memory = _structure("Memory", "ring main keys", "ring_rows")
Span = _structure("Span", "memory", "start rows together")
Router = _structure("Router", "bias tid2eid", "top_k", "scale", "gate")
Ring = _structure("Ring", "memory", "jobs pairs dim")
Carry = _structure("Carry", "importance factor rest gains within", "rank")
ServedLayer = _structure("ServedLayer", "experts", "n_experts", "limit")
Fetch = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64)


def entry_bytes(dims: int, rope_dims: int) -> int:
    """Bytes of one KV entry (v4k.h)."""
    plain = dims - rope_dims
    return plain + 2 * rope_dims + -(-plain // KV_GROUP // 8) * 8


def key_bytes(dims: int) -> tuple[int, int]:
    """Bytes of one index key: codes and scales."""
    return dims // 2, dims // KEY_GROUP


_P, _N = c_void_p, c_int64
SIGNATURES = {
    "v4k_format": (c_int, (_N, _P)),
    "v4k_scratch_peak": (c_int64, ()),
    "v4k_isa": (c_char_p, ()),
    "v4k_isa_tiers": (c_char_p, ()),
    "v4k_set_isa": (c_int, (c_char_p,)),
    "v4k_cpus": (c_int, ()),
    "v4k_threads": (c_int, ()),
    "v4k_set_threads": (c_int, (c_int,)),
    "v4k_decode": (c_int, (_P, _P)),
    "v4k_rounding": (c_int, (_P, _P, _P)),
    "v4k_encode_int8": (c_int, (_P, _P, _N, _N, _P, _P)),
    "v4k_encode_lowbit": (c_int, (_P, _N, _N, _N, _P, _N, _P, _P)),
    "v4k_carry_gains": (c_int, (_P, _P, _N, _N, _P, _P)),
    "v4k_carry_lowbit": (c_int, (_P, _N, _N, _N, _P, _P, _P)),
    "v4k_quantize": (c_int, (_P, _N, _N, _P, _P)),
    "v4k_linear": (c_int, (_P, _N, _P, _N, _P)),
    "v4k_experts": (c_int, (_P, _N, _P, _P, _N, _P, _P, _N, c_float, _P)),
    "v4k_embed": (c_int, (_P, _P, _N, _N, _P)),
    "v4k_hyper_pre": (c_int, (_P, _P, _N, _P, _P)),
    "v4k_hyper_post": (c_int, (_P, _P, _N, _N, _N, _P)),
    "v4k_hyper_head": (c_int, (_P, _P, _N, _P)),
    "v4k_rotations": (c_int, (_P, _N, _N, _N, _N, _P)),
    "v4k_queries": (c_int, (_P, _P, _N, _P, _P, _P)),
    "v4k_window_entries": (c_int, (_P, _P, _N, _P, _P)),
    "v4k_attend": (c_int, (_P, _P, _P, _N, _N, _P, _N, _P, _P, _N, _P, _N, _P)),
    "v4k_attention_output": (c_int, (_P, _P, _N, _P)),
    "v4k_compress": (c_int, (_P, _P, _N, _N, _P)),
    "v4k_select": (c_int, (_P, _P, _P, _P, _N, _N, _P, _P, _P)),
    "v4k_index_scores": (c_int, (_P, _P, _P, _P, _P, _N, _P)),
    "v4k_attention_scratch": (c_int64, (_P,)),
    "v4k_self_attention": (c_int, (_P, _P, _P, _P, _N, _P, _P)),
    "v4k_route": (c_int, (_P, _P, _P, _N, _P, _P, _P)),
    "v4k_sample": (c_int, (_P, _P, _N, c_double, _N, c_double, c_double, c_uint64, _P, _P)),
    "v4k_elementary": (c_int, (_N, _P, _N, _P)),
    "v4k_read_probe": (c_uint64, (_P, _N)),
    "v4k_ring_bytes": (c_int64, (_P,)),
    "v4k_ring_post": (None, (_P, c_uint64)),
    "v4k_ring_wait": (c_int, (_P, c_uint64, _N)),
    "v4k_serve_start": (c_int, (_P, _P, _N, Fetch, _P, _N, ctypes.POINTER(c_void_p))),
    "v4k_serve_begin": (c_int, (_P,)),
    "v4k_serve_end": (c_int, (_P,)),
    "v4k_serve_stop": (c_int, (_P,)),
    "v4k_reserve": (c_void_p, (_N,)),
    "v4k_commit": (c_int, (_P, _N)),
    "v4k_discard": (None, (_P, _N)),
    "v4k_release": (None, (_P, _N)),
    "v4k_large_pages": (c_int, (_P, _N)),
    "v4k_populate": (c_int, (_P, _N)),
    "v4k_file_open": (c_int64, (c_char_p, c_int)),
    "v4k_file_read": (c_int64, (_N, _P, _N, _N)),
    "v4k_file_identity": (c_int, (_N, _P)),
    "v4k_file_forget": (None, (_N, _N, _N)),
    "v4k_file_close": (None, (_N,)),
}


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library at `path`, or None and the reason it cannot be used."""
    rebuild = "install again where a C++ compiler is present"
    if not path.is_file():
        return None, f"{LIBRARY} was not built; {rebuild}"
    try:
        library = ctypes.CDLL(str(path))
        version = library.v4k_abi_version()
    except (OSError, AttributeError) as problem:
        return None, f"{LIBRARY} cannot be loaded ({problem}); {rebuild}"
    if version != ABI_VERSION:
        return None, f"{LIBRARY} has ABI version {version}, this package needs {ABI_VERSION}; {rebuild}"
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library, ""


@cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    return load(Path(str(files("v4kernels").joinpath(LIBRARY))))


def available() -> bool:
    """Whether the kernels can be used."""
    return _loaded()[0] is not None


def reason() -> str:
    """Why they cannot, in one line; empty if they can."""
    return _loaded()[1]


def library() -> ctypes.CDLL:
    """The functions of v4k.h, typed. RuntimeError where the library is not available."""
    loaded, why = _loaded()
    if loaded is None:
        raise RuntimeError(why)
    return loaded


def isa() -> str:
    """ISA tier in use."""
    return library().v4k_isa().decode()


def isa_tiers() -> list[str]:
    """Tiers this machine can run, lowest first; the environment variable V4_ISA names the highest to offer."""
    return library().v4k_isa_tiers().decode().split()


def set_isa(name: str) -> None:
    """Use one of `isa_tiers()` from now on. ValueError for others."""
    checked(library().v4k_set_isa(name.encode()))


def cpus() -> int:
    """CPUs this process may compute on; where some are slower by design, the fast ones."""
    return library().v4k_cpus()


def threads() -> int:
    """Threads that compute, the calling one included."""
    return library().v4k_threads()


def set_threads(n: int) -> None:
    """Set their number, 1 to 1,024."""
    checked(library().v4k_set_threads(n))


def matrix(codes: Tensor, scale: Tensor, form: str) -> Matrix:
    """Describe a weight (out, in) of a format with scales (formats.py). The result keeps the tensors; a copy of it
    inside another structure does not. Codes may be of any dtype of one byte.
    """
    import torch

    about = FORMATS[form]
    rows, cols = codes.shape[0], about.cols(codes.shape[1])
    want = {"F8_E8M0": torch.float8_e8m0fnu, "BF16": torch.bfloat16, "U8": torch.uint8}[about.scale]
    shape = about.tensors(rows, cols)["scale"][1]
    if codes.element_size() != 1 or scale.dtype != want or scale.shape != shape or not about.fits(cols):
        raise ValueError(f"not a {form} weight: codes {tuple(codes.shape)}, scale {tuple(scale.shape)} {scale.dtype}")
    if not (codes.is_contiguous() and scale.is_contiguous()):
        raise ValueError("weights must be contiguous")
    described = Matrix(codes.data_ptr(), scale.data_ptr(), rows, cols, about.id)
    described.tensors = codes, scale
    return described


def decode(codes: Tensor, scale: Tensor, form: str) -> Tensor:
    """A weight of a format with scales, as in `matrix`, in fp32."""
    import torch

    weight = matrix(codes, scale, form)
    out = torch.empty((weight.rows, weight.cols))
    checked(library().v4k_decode(ctypes.byref(weight), out.data_ptr()))
    return out


def rounding(codes: Tensor, scale: Tensor, form: str, values: Tensor) -> tuple[float, float]:
    """Sums of the squared differences between such a weight and values (out, in) fp32, and of their squares; not finite
    where a value is not."""
    weight, values, sums = matrix(codes, scale, form), _fp32(values), (ctypes.c_double * 2)()
    if values.shape != (weight.rows, weight.cols):
        raise ValueError(f"values {tuple(values.shape)} are not those of {weight.rows} x {weight.cols}")
    checked(library().v4k_rounding(ctypes.byref(weight), values.data_ptr(), sums))
    return sums[0], sums[1]


def encode_lowbit(w: Tensor, form: str, importance: Tensor | None, codes: bool = True) -> tuple[Tensor | None, Tensor]:
    """w (out, in) fp32 -> codes, if they are asked for, and scales as stored in q3 or q2; `importance` (in,) or
    (out, in)."""
    import torch

    w, stored = _fp32(w), FORMATS[form].tensors(*w.shape)
    counts = None if importance is None else _fp32(importance)
    if counts is not None and counts.shape not in (w.shape, w.shape[1:]):
        raise ValueError(f"importance {tuple(counts.shape)} does not fit {tuple(w.shape)}")
    packed = torch.empty(stored["weight"][1], dtype=torch.uint8) if codes else None
    scale = torch.empty(stored["scale"][1], dtype=torch.uint8)
    counts_at, stride = (None, 0) if counts is None else (counts.data_ptr(), w.shape[1] if counts.dim() == 2 else 0)
    packed_at = None if packed is None else packed.data_ptr()
    about = FORMATS[form].id, counts_at, stride, packed_at, scale.data_ptr()
    checked(library().v4k_encode_lowbit(w.data_ptr(), *w.shape, *about))
    return packed, scale


def carry_gains(factor: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """v4k_carry_gains: factor (in, rank) and rest (in,), fp32 -> gains (in, rank), within (in, 16)."""
    import torch

    factor, rest = _fp32(factor), _fp32(rest)
    if rest.shape != factor.shape[:1]:
        raise ValueError(f"rest {tuple(rest.shape)} does not fit {tuple(factor.shape)}")
    gains, within = torch.empty(factor.shape), torch.empty((len(factor), 16))
    places = factor.data_ptr(), rest.data_ptr(), *factor.shape, gains.data_ptr(), within.data_ptr()
    checked(library().v4k_carry_gains(*places))
    return gains, within


def carry_lowbit(
    w: Tensor, form: str, importance: Tensor, factor: Tensor, rest: Tensor, gains: Tensor, within: Tensor
) -> tuple[Tensor, Tensor]:
    """v4k_carry_lowbit: w (out, in) fp32 -> codes and scales as stored in q3 or q2; importance (in,), the others as in
    `carry_gains`."""
    import torch

    w, stored = _fp32(w), FORMATS[form].tensors(*w.shape)
    known = [_fp32(each) for each in (importance, factor, rest, gains, within)]
    cols, rank = w.shape[1], factor.shape[1]
    if [each.shape for each in known] != [(cols,), (cols, rank), (cols,), (cols, rank), (cols, 16)]:
        raise ValueError(f"what is known of {factor.shape[0]} inputs does not fit {tuple(w.shape)}")
    packed = torch.empty(stored["weight"][1], dtype=torch.uint8)
    scale = torch.empty(stored["scale"][1], dtype=torch.uint8)
    carry = Carry(*(each.data_ptr() for each in known), rank)
    about = FORMATS[form].id, ctypes.addressof(carry), packed.data_ptr(), scale.data_ptr()
    checked(library().v4k_carry_lowbit(w.data_ptr(), *w.shape, *about))
    return packed, scale


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, K) fp32 -> int8 codes (N, K) and fp32 scales (N, K/32)."""
    import torch

    x = _fp32(x)
    n, k = x.shape
    q, scale = torch.empty((n, k), dtype=torch.int8), torch.empty((n, k // GROUP))
    checked(library().v4k_quantize(x.data_ptr(), n, k, q.data_ptr(), scale.data_ptr()))
    return q, scale


def linear(x: Tensor, w: Matrix, groups: int = 1) -> Tensor:
    """x (N, groups * in) -> (N, out) fp32; output rows fall into `groups` equal parts, each sees its part of x."""
    import torch

    x = _fp32(x)
    if x.dim() != 2 or x.shape[1] != groups * w.cols:
        raise ValueError(f"input {tuple(x.shape)} does not fit {groups} x {w.cols}")
    y = torch.empty((len(x), w.rows))
    checked(library().v4k_linear(ctypes.addressof(w), groups, x.data_ptr(), len(x), y.data_ptr()))
    return y


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, table: ctypes.Array, shared: Expert | None, limit: float, out: Tensor
) -> None:
    """Add one layer's expert MLPs to out (N, D) fp32: x (N, D), ids (N, k) int64, weights (N, k), table of Expert."""
    import torch

    x, ids, weights = _fp32(x), ids.long().contiguous(), _fp32(weights)
    if not (out.dtype == torch.float32 and out.is_contiguous() and out.shape == x.shape):
        raise ValueError("out must be like x, fp32 and contiguous")
    if ids.dim() != 2 or ids.shape != weights.shape or len(ids) != len(x) or x.shape[1] != table[0].w1.cols:
        raise ValueError(f"sizes do not fit: x {tuple(x.shape)}, ids {tuple(ids.shape)}, {tuple(weights.shape)}")
    shared_at = None if shared is None else ctypes.addressof(shared)
    checked(
        library().v4k_experts(
            ctypes.addressof(table),
            len(table),
            shared_at,
            x.data_ptr(),
            len(x),
            ids.data_ptr(),
            weights.data_ptr(),
            ids.shape[1],
            limit,
            out.data_ptr(),
        )
    )


def sample(
    logits: np.ndarray,
    allowed: np.ndarray | None,
    temperature: float,
    top_k: int,
    min_p: float,
    top_p: float,
    random: int,
) -> tuple[int, int]:
    """v4k_sample: logits (vocab,) fp32, `allowed` (vocab,) bool -> token, and the sum of weights at temperature 1."""
    import numpy as np

    logits = np.ascontiguousarray(logits, np.float32)
    if allowed is not None:
        allowed = np.ascontiguousarray(allowed, np.bool_)
        if allowed.shape != logits.shape:
            raise ValueError(f"allowed {allowed.shape} does not fit logits {logits.shape}")
    token, norm = c_int64(), c_int64()
    allowed_at = None if allowed is None else allowed.ctypes.data
    options = temperature, min(top_k, len(logits)), min_p, top_p, random
    checked(library().v4k_sample(logits.ctypes.data, allowed_at, len(logits), *options, byref(token), byref(norm)))
    return token.value, norm.value


def read_probe(data: np.ndarray) -> int:
    """Read every byte of `data` with all threads; a checksum."""
    return library().v4k_read_probe(data.ctypes.data, data.nbytes)


def _fp32(x: Tensor) -> Tensor:
    return x.float().contiguous()


def checked(code: int) -> None:
    """ValueError, MemoryError or FloatingPointError for a V4K_E code."""
    if code == -2:
        raise MemoryError("no memory for the kernels' scratch")
    if code == -3:
        raise FloatingPointError("a value is not finite")
    if code:
        raise ValueError("argument out of range (v4k.h)")
