"""The table of number formats: the same in Python and C++, and what every format says of itself is so."""

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from v4kernels import native
from v4kernels.cpu import PackedWeight
from v4kernels.formats import DTYPES, FORMATS, GROUP, OFFICIAL, finite
from v4kernels.triton import weights as device_weights

from v4cli.store.formats import DECODE, ENCODE, decode, rounding

HEADER = Path(__file__).parents[2] / "kernels" / "include" / "v4k.h"
SCALED = [name for name, form in FORMATS.items() if form.scale]
READ = [name for name, form in FORMATS.items() if form.id]
UNKNOWN = (-1, 0, max(FORMATS[name].id for name in READ) + 1, 1 << 40)
needs_library = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


def weights(rows: int, cols: int) -> torch.Tensor:
    return torch.randn((rows, cols), generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, rows)[:, None]


def stored(form: str, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    if form in ENCODE:
        return ENCODE[form](w)
    return w.to({"bf16": torch.bfloat16, "f32": torch.float32}[form]), None


def packed(form: str, w: torch.Tensor) -> PackedWeight:
    codes, scale = stored(form, w)
    return PackedWeight(codes.data_ptr(), scale if scale is None else scale.data_ptr(), *w.shape, form, (codes, scale))


@needs_library
def test_the_library_says_the_same_of_every_format():
    told, info = {}, native.FormatInfo()
    while native.library().v4k_format(len(told) + 1, ctypes.addressof(info)) == 0:
        told[info.name.decode()] = (len(told) + 1, info.code_bytes, info.scale_bytes, info.row_scale)
    read = [FORMATS[name] for name in READ]
    ours = {
        form.name: (form.id, form.code_bytes, DTYPES[form.scale].n_bytes if form.scale else 0, form.row_scale)
        for form in read
    }
    assert told == ours and all(form.group == GROUP and form.block_rows == 1 for form in read)
    for number in UNKNOWN:
        assert native.library().v4k_format(number, ctypes.addressof(info)) != 0


def test_the_header_numbers_them_so():
    enum = re.search(r"enum \{\s+V4K_FP4.*?\}", HEADER.read_text(), re.DOTALL)[0]
    ids = dict(re.findall(r"V4K_([A-Z0-9]+) = ([1-9]),", enum))
    assert {name.upper(): str(FORMATS[name].id) for name in READ} == ids
    assert f"#define V4K_GROUP {GROUP} " in HEADER.read_text()
    assert f"#define V4K_ABI_VERSION {native.ABI_VERSION} " in HEADER.read_text()


def test_every_format_with_scales_has_both_functions():
    assert set(SCALED) == set(ENCODE) == set(DECODE)
    assert {OFFICIAL[dtype].name for dtype in OFFICIAL} == {"fp8", "fp4", "bf16", "f32"}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(70, 96), (128, 256), (1, 32)])
def test_what_is_stored_has_the_dtype_shape_and_bytes_that_the_table_says(form, shape):
    about, (codes, scale) = FORMATS[form], stored(form, weights(*shape))
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e8m0fnu: "F8_E8M0", torch.int8: "I8", torch.uint8: "U8",
             torch.bfloat16: "BF16", torch.float32: "F32"}  # fmt: skip
    tensors = {"weight": codes} | ({} if scale is None else {"scale": scale})
    assert {half: (names[t.dtype], tuple(t.shape)) for half, t in tensors.items()} == about.tensors(*shape)
    assert about.cols(codes.shape[1]) == shape[1]
    if shape == (128, 256):
        assert sum(t.nbytes for t in tensors.values()) == about.bits * 128 * 256 / 8 + 128 * about.row_scale
    assert tuple(t.nbytes for t in (*tensors.values(), torch.empty(0))[:2]) == about.n_bytes(*shape)


@pytest.mark.parametrize("form", SCALED)
def test_what_was_decoded_is_encoded_to_itself(form):
    """But for those that may choose another scale for the same values: nearly, the nearer the more levels."""
    once = DECODE[form](*ENCODE[form](weights(70, 256)))
    again = DECODE[form](*ENCODE[form](once))
    assert (once - again).norm() <= {"q2": 6e-2}.get(form, 1e-2) * once.norm()
    if form in ("fp8", "fp4"):
        assert torch.equal(once, again)


def test_rows_that_are_not_whole_groups_fit_only_what_has_none():
    assert [name for name, form in FORMATS.items() if form.fits(48)] == ["fp8", "bf16", "f32"]
    assert all(form.fits(96) for form in FORMATS.values())


@pytest.mark.parametrize("dtype,codes,bad", [
    ("F8_E8M0", "u1", 0xFF), ("F8_E4M3", "u1", 0x7F), ("F8_E4M3", "u1", 0xFF), ("BF16", "<u2", 0x7F80),
    ("BF16", "<u2", 0xFFC0), ("F32", "<u4", 0x7F800000), ("F32", "<u4", 0xFFC00001),
])  # fmt: skip
def test_values_that_are_not_finite_are_found_wherever_they_lie(dtype, codes, bad):
    raw = np.zeros(1 + 64 * np.dtype(codes).itemsize, np.uint8)[1:]  # at an odd address
    assert finite(dtype, raw)
    raw.view(codes)[63] = bad
    assert not finite(dtype, raw)
    assert finite("I8", raw) and finite("I64", raw)


@needs_library
@pytest.mark.parametrize("form", READ)
def test_a_table_of_any_format_embeds_as_it_decodes(ops, form):
    w = weights(9, 96)
    codes, scale = stored(form, w)
    want = (codes.float() if scale is None else DECODE[form](codes, scale)).numpy()
    assert np.array_equal(ops.embed([3, 0, 8], packed(form, w), 2), np.tile(want[[3, 0, 8]], 2))


@pytest.mark.parametrize("form", READ)
def test_a_weight_takes_as_many_bytes_of_a_gpu_as_the_table_says(form):
    parts = device_weights.stored(packed(form, weights(8, 64)))
    assert tuple(part.nbytes for part in parts) == FORMATS[form].n_bytes(8, 64)


def test_what_no_kernel_for_gpus_reads_is_refused_by_name():
    assert set(device_weights.READ) == set(READ)
    weight = SimpleNamespace(form="fp8")
    with pytest.raises(ValueError, match="no kernel for GPUs reads fp8 weights"):
        device_weights.stored(weight)


@needs_library
@pytest.mark.parametrize("number", UNKNOWN)
def test_an_unknown_format_is_an_error_and_never_another_one(ops, number):
    weight = packed("int4", weights(32, 32))
    weight.matrix.format = number
    with pytest.raises(ValueError, match="out of range"):
        native.linear(torch.ones(1, 32), weight.matrix)
    with pytest.raises(ValueError, match="out of range"):
        ops.embed([0], weight, 1)
    good = packed("int4", weights(32, 32)).matrix
    ids, one = torch.zeros((1, 1), dtype=torch.int64), torch.ones((1, 1))
    for matrices in ((weight.matrix, good, good), (good, weight.matrix, good), (good, good, weight.matrix)):
        table = (native.Expert * 1)(native.Expert(*matrices))
        with pytest.raises(ValueError, match="out of range"):
            native.experts(torch.ones(1, 32), ids, one, table, None, 10.0, torch.zeros(1, 32))


@needs_library
@pytest.mark.parametrize("form", [name for name in SCALED if name in READ])
def test_the_library_decodes_and_measures_what_was_rounded(form):
    """To the bit, and to the last digits of sums in another order; of many rows, in several threads, the same."""
    w = weights(70, 352)
    codes, scale = ENCODE[form](w)
    plain = DECODE[form](codes, scale)
    assert torch.equal(native.decode(codes, scale, form), plain) and torch.equal(decode(form, codes, scale), plain)
    sums = native.rounding(codes, scale, form, w)
    assert sums == pytest.approx(
        (float((plain.double() - w).square().sum()), float(w.double().square().sum())), rel=1e-12
    )
    assert rounding(form, codes, scale, w) == sums
    rows = torch.cat([w] * 40), *(torch.cat([x.view(torch.uint8)] * 40).view(x.dtype) for x in (codes, scale))
    assert native.rounding(rows[1], rows[2], form, rows[0]) == pytest.approx([40 * x for x in sums], rel=1e-12)
    for bad in (float("nan"), float("inf"), -float("inf")):
        w[69, 351] = bad
        assert not np.isfinite(native.rounding(codes, scale, form, w)[1])
    with pytest.raises(ValueError):
        native.rounding(codes, scale, form, w[:69])


def test_without_the_library_roundings_are_measured_all_the_same(monkeypatch):
    w = weights(4, 64)
    codes, scale = ENCODE["int8"](w)
    monkeypatch.setattr(native, "available", lambda: False)
    error, squares = rounding("int8", codes, scale, w)
    assert 0 < error < 1e-4 * squares == pytest.approx(1e-4 * float(w.double().square().sum()))
    assert torch.equal(decode("int8", codes, scale), DECODE["int8"](codes, scale))
