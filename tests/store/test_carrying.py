"""Rounding with errors carried: the bytes of the reference on every tier, and what GPTQ says in other words."""

import pytest
import torch
from store.test_lowbit import rows_of_all_kinds
from v4kernels import native

from v4cli.store import lowbit, rounding
from v4cli.store.rounding import Inputs

COLS, RANK = 288, 22


def known(seed: int = 5) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(RANK, COLS, generator=g)
    return Inputs.by(factor, factor.square().sum(0) + 8 * torch.rand(COLS, generator=g))


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
@pytest.mark.parametrize("form", ["q3", "q2"])
def test_the_kernels_carry_to_the_bytes_that_the_reference_does(form, monkeypatch):
    w, tiers, threads, made = rows_of_all_kinds(), native.isa_tiers(), native.threads(), []
    try:
        for tier in tiers:
            native.set_isa(tier)
            for n in (1, 2):
                native.set_threads(n)
                inputs = known()
                made.append((*rounding.encode(w, form, inputs), inputs.gains, inputs.within))
    finally:
        native.set_isa(tiers[-1])
        native.set_threads(threads)
    monkeypatch.setattr(native, "available", lambda: False)
    inputs = known()
    wanted = (*rounding.encode(w, form, inputs), inputs.gains, inputs.within)
    for got in made:
        assert all(torch.equal(a, b) for a, b in zip(got, wanted))
    plain = lowbit.encode(w, form, inputs.importance)[0]
    carried = (wanted[0] != plain).any(-1)
    assert carried[:4].all() and not carried[[4, 12, 13, 14, 15, 16, 17]].any()


def test_what_is_carried_is_what_the_inverse_of_all_moments_says():
    inputs, g = known(), torch.Generator().manual_seed(1)
    factor = inputs.factor.double()
    moments = factor @ factor.t() + inputs.rest.double().diag()
    triangle = torch.linalg.cholesky(torch.linalg.inv(moments), upper=True)
    errors = torch.randn(COLS, generator=g, dtype=torch.float64)
    scaled = torch.linalg.solve_triangular(triangle, errors[None], upper=True, left=False)[0]
    wanted = scaled * triangle.diagonal() - errors  # before each weight is rounded
    before = torch.cat((torch.zeros(1, factor.shape[1]), (factor * errors[:, None]).cumsum(0)[:-1]))
    torch.testing.assert_close((inputs.gains * before).sum(-1), wanted, rtol=1e-4, atol=1e-5)
    assert torch.allclose(errors @ moments @ errors, scaled.square().sum())
    run = slice(32, 48)
    torch.testing.assert_close(inputs.within[run], inputs.factor[run] @ inputs.gains[run].t())


def test_products_are_added_with_one_rounding():
    a = torch.tensor([1 + 2.0**-12, 1 + 2.0**-12, 3.0])
    c = torch.tensor([-1.0, 2.0**-80, 0.1])
    wanted = [2.0**-11 + 2.0**-24, 1 + 2.0**-11 + 2.0**-23, 9.1]  # the second: past the middle of two by 2^-80
    assert rounding._fma(a, a, c).tolist() == torch.tensor(wanted).tolist()


@pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
def test_what_does_not_fit_together_is_refused():
    inputs = known()
    with pytest.raises(ValueError, match="does not fit"):
        rounding.encode(torch.zeros(4, 256), "q3", inputs)
    with pytest.raises(ValueError):
        native.carry_gains(torch.zeros(64, 6), torch.ones(64))
