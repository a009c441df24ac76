"""The formats q3 and q2: how near they come to MXFP4 weights, what importance does, and how codes lie."""

import pytest
import torch
from v4kernels import native
from v4kernels.formats import FORMATS, LEVELS, MULTIPLIERS

from v4cli.store import lowbit
from v4cli.store.formats import DECODE, ENCODE, decode_fp4, pack_fp4

FORMS = ("q3", "q2")


def official(values: torch.Tensor) -> torch.Tensor:
    """Weights as an official checkpoint has them: FP4 by the power of two that clips nothing."""
    groups = values.unflatten(-1, (-1, 32))
    scale = torch.exp2(torch.ceil(torch.log2(groups.abs().amax(-1) / 6)))
    packed = pack_fp4((groups / scale[..., None]).flatten(-2))
    return decode_fp4(packed, scale.to(torch.float8_e8m0fnu))


def random(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, cols), generator=torch.Generator().manual_seed(seed))


def relative_error(form: str, w: torch.Tensor) -> float:
    got = DECODE[form](*ENCODE[form](w))
    return float((got - w).square().sum() / w.square().sum())


@pytest.mark.parametrize("form,most", [("q3", 0.026), ("q2", 0.096)])
def test_the_error_on_mxfp4_weights_is_within_what_was_asked(form, most):
    error = relative_error(form, official(random(16, 2048)))
    assert 0.5 * most < error <= most


@pytest.mark.parametrize("form,most", [("q3", 0.03), ("q2", 0.12)])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_groups_of_other_sizes_in_a_row_cost_little(form, most, spread):
    sizes = torch.exp(spread * random(16, 64, 1)).repeat_interleave(32, -1)
    assert relative_error(form, official(random(16, 2048) * sizes)) <= most


@pytest.mark.parametrize("form", FORMS)
def test_importance_moves_the_error_to_inputs_that_matter_less(form):
    w, importance = random(32, 256), torch.ones(256)
    importance[::4] = 100.0

    def error(decoded: torch.Tensor) -> float:
        return float(((decoded - w).square() * importance).sum())

    plain, weighted = (DECODE[form](*ENCODE[form](w, about)) for about in (None, importance))
    assert error(weighted) < 0.8 * error(plain)
    assert torch.equal(DECODE[form](*ENCODE[form](w, torch.ones(256))), plain)
    assert torch.equal(DECODE[form](*ENCODE[form](w, importance.expand(32, -1))), weighted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cols", [32, 96, 256])
def test_codes_and_scales_are_read_as_they_were_packed(form, cols):
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(len(LEVELS[form]), (7, cols), dtype=torch.uint8, generator=g)
    assert torch.equal(lowbit.unpack(lowbit.pack(codes, form), form), codes)
    number = torch.randint(len(MULTIPLIERS), (7, cols // 16), generator=g)
    scales = lowbit.Scales(random(7, 1).bfloat16().float(), number)
    again = lowbit.unpack_scales(lowbit.pack_scales(scales))
    assert torch.equal(again.row, scales.row) and torch.equal(again.number, number)
    packed = lowbit.pack(codes, form), lowbit.pack_scales(scales)
    assert tuple(part.nbytes for part in packed) == FORMATS[form].n_bytes(7, cols)


def test_the_place_of_every_bit():
    codes = torch.zeros((1, 64), dtype=torch.uint8)
    codes[0, 36:40] = torch.tensor([1, 2, 3, 1])  # the second four of the second group
    assert lowbit.pack(codes, "q2").tolist() == [[0] * 9 + [0b01_11_10_01] + [0] * 6]
    codes[0, 36:40] = torch.tensor([0b011, 0b110, 0b101, 0b111])
    codes[0, 52:56] = torch.tensor([0, 0, 0b010, 0])  # the sixth
    packed = lowbit.pack(codes, "q3")[0].tolist()
    n0, n1, n2 = 0b1011, 0b1110, 0b1011
    assert packed == [0] * 9 + [n0 | n1 << 4] + [0] * 6 + [0] * 5 + [n2 | 0b0100 << 4] + [0] * 2
    number = torch.tensor([[1, 2, 3, 9]])
    packed = lowbit.pack_scales(lowbit.Scales(torch.tensor([[1.5]]), number))
    assert packed.tolist() == [[0xC0, 0x3F, 0x21, 0x93]]


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_zeros_are_zeros_and_what_is_not_finite_is_seen(form):
    w = random(4, 64)
    w[1] = 0
    w[2, 5], w[3, 9] = float("nan"), float("inf")
    codes, scale = ENCODE[form](w)
    about, raw = FORMATS[form], scale.numpy()
    assert not DECODE[form](codes, scale)[1].any()
    assert [about.finite_scales(row, 1) for row in raw] == [True, True, False, False]
    assert not about.finite_scales(raw.ravel(), 4) and about.finite_scales(raw[:2].ravel(), 2)


@pytest.mark.parametrize("form", FORMS)
def test_rounding_in_parts_is_what_encoding_does(form):
    """For those that round input by input."""
    w = random(8, 128)
    scales = lowbit.fit(w, form)
    steps = scales.steps().repeat_interleave(lowbit.RUN, -1)
    codes = torch.cat([lowbit.nearest(w[:, i : i + 1], steps[:, i : i + 1], form) for i in range(128)], -1)
    for made, wanted in zip((lowbit.pack(codes, form), lowbit.pack_scales(scales)), ENCODE[form](w)):
        assert torch.equal(made, wanted)
    assert torch.equal(lowbit.values(codes, steps, form), DECODE[form](*ENCODE[form](w)))


def rows_of_all_kinds() -> torch.Tensor:
    """(20, 288): on a grid and off it, with ties, zeros, and values about the ends of fp32."""
    w = random(20, 288, 2)
    w[:4] = official(w[:4])
    w[4], w[5, :256], w[6] = 0, 0, w[6].round()
    w[7] = torch.tensor([1.0, -1.0]).repeat(144)  # no largest weight
    w[8] *= torch.exp(4 * random(1, 288, 3)[0])
    w[9] = w[9].clamp(-1, 1) * torch.finfo(torch.float32).max
    w[10:15] *= torch.tensor([1e-20, 2.0**-99, 2.0**-103, 1e-38, 1e-42])[:, None]
    w[15, 5], w[16, 280], w[17, 0] = float("nan"), float("inf"), -float("inf")
    return w


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
@pytest.mark.parametrize("about", ["alike", "by input", "by weight"])
@pytest.mark.parametrize("form", FORMS)
def test_the_kernels_choose_the_bytes_that_the_reference_does(form, about, monkeypatch):
    w, importance = rows_of_all_kinds(), None
    if about != "alike":
        importance = random(20, 288, 4).exp() if about == "by weight" else 1e-6 * random(1, 288, 4)[0].exp()
    tiers, made = native.isa_tiers(), []
    try:
        for tier in tiers:
            native.set_isa(tier)
            made.append((*lowbit.encode(w, form, importance), lowbit.pack_scales(lowbit.fit(w, form, importance))))
    finally:
        native.set_isa(tiers[-1])
    monkeypatch.setattr(native, "available", lambda: False)
    codes, scale = lowbit.encode(w, form, importance)
    assert (scale.bool().any(-1) == torch.tensor([row not in (4, 12, 13, 14) for row in range(20)])).all()
    for got in made:
        assert torch.equal(got[0], codes) and torch.equal(got[1], scale) and torch.equal(got[2], scale)


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
@pytest.mark.parametrize("form", FORMS)
def test_the_size_of_a_row_does_not_matter(form):
    w = random(8, 288)
    codes, scale = lowbit.encode(w, form)
    for power in (-90, 120):
        other_codes, other = lowbit.encode(w * 2.0**power, form)
        assert torch.equal(other_codes, codes) and torch.equal(other[:, 2:], scale[:, 2:])


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError):
        lowbit.encode(random(2, 48), "q3")
    with pytest.raises(ValueError):
        lowbit.encode(random(2, 64), "q3", torch.ones(63))
    with pytest.raises(ValueError):
        native.encode_lowbit(random(2, 64), "int4", None)
