"""v4k_sample against its plain statement, bit for bit on every tier, and that against probabilities in float64."""

from itertools import product

import numpy as np
import pytest
from v4kernels import native, sampling

WORST = float(np.float32(np.log(0.49 * 2.0**-44)))  # so unlikely that it rounds to nothing


def random(seed):
    return np.random.default_rng(seed)


def shapes(n):
    """Name and logits (n,) of every kind."""
    yield "peaked", (random(1).normal(size=n) * 6).astype(np.float32)
    yield "even", (random(2).normal(size=n) / 8).astype(np.float32)
    yield "ties", random(3).integers(-3, 3, n).astype(np.float32)
    yield "equal", np.full(n, -7.25, np.float32)
    yield "zeros of both signs", np.where(random(4).random(n) < 0.5, np.float32(-0.0), np.float32(0.0))
    yield (
        "some impossible",
        np.where(random(5).random(n) < 0.7, np.float32(-np.inf), random(6).normal(size=n)).astype("f"),
    )
    yield "far apart", (random(7).normal(size=n) * 1e30).astype(np.float32)
    yield "one and a tail", np.where(np.arange(n) == n // 2, np.float32(0), np.float32(WORST))


def finite_shapes(n):
    return ((name, logits) for name, logits in shapes(n) if logits.max() > -np.inf)


def masks(logits):
    """None, half of the tokens, and only one."""
    one = np.zeros(len(logits), bool)
    one[random(8).choice(np.flatnonzero(logits > -np.inf))] = True
    return None, (random(9).random(len(logits)) < 0.5) | one, one


OPTIONS = list(
    product((0, 0.3, 1, 1.7, 1e-300, 100), (0, 1, 2, 40, 1500), (0, 1e-12, 0.03, 0.6), (1, 1 - 1e-16, 0.9, 0.3, 1e-300))
)
DRAWS = (0, 2**64 - 1, *(int(x) for x in random(10).integers(0, 2**64, 3, np.uint64)))


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 1000])
def test_every_tier_draws_as_the_plain_statement(tier, n):
    cases = [(logits, allowed) for _, logits in finite_shapes(n) for allowed in masks(logits)]
    for i, options in enumerate(OPTIONS):
        for j, (logits, allowed) in enumerate(cases):
            if (i + j) % 6:  # every option and every case, not every pair
                continue
            draw = DRAWS[(i + j) // 6 % len(DRAWS)]
            want = sampling.plain(logits, allowed, *options, draw)
            assert native.sample(logits, allowed, *options, draw) == want, (options, j, draw)


def test_every_tier_draws_as_the_plain_statement_from_the_vocabulary_of_v4(tier):
    options = [
        (0, 0, 0, 1),
        (1, 0, 0, 1),
        (0.7, 0, 0, 1),
        (1, 0, 0, 0.95),
        (0.6, 0, 0, 0.95),
        (1, 50, 0, 1),
        (1, 2000, 0, 1),
    ]
    options += [(1, 0, 0.05, 1), (0.8, 40, 0.05, 0.9), (2, 5000, 0.001, 0.99)]
    for i, (_, logits) in enumerate(shapes(129_280)):
        for j, allowed in enumerate(masks(logits)):
            for chosen in options[(i + j) % 3 :: 3]:
                draw = DRAWS[(i + j) % len(DRAWS)]
                assert native.sample(logits, allowed, *chosen, draw) == sampling.plain(logits, allowed, *chosen, draw)


def probabilities(logits, allowed, temperature, top_k, min_p, top_p):
    """(n,) float64, and how far the nearest border of a filter is from moving, relative."""
    left = logits.astype(np.float64) if allowed is None else np.where(allowed, logits.astype(np.float64), -np.inf)
    p = np.exp((left - left.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-left, kind="stable")
    kept, near = order[: top_k or None], 1.0
    if min_p:
        near = abs(p[kept] / p.max() / min_p - 1).min()
        kept = kept[p[kept] >= min_p * p.max()]
    if top_p < 1:
        mass = p[kept].cumsum() / p[kept].sum()
        near = min(near, abs(mass / top_p - 1).min())
        kept = kept[: np.searchsorted(mass, top_p) + 1]
    of_kept = np.zeros_like(p)
    of_kept[kept] = p[kept] / p[kept].sum()
    return of_kept, near


@pytest.mark.parametrize("name", [name for name, _ in shapes(1)])
def test_evenly_spread_draws_give_every_token_its_share(name):
    """Of n draws, one at each n-th of the mass, a token gets its share to within one."""
    n, tested = 512, 0
    logits = dict(shapes(60))[name]
    draws = [(2 * i + 1) * 2**63 // n for i in range(n)]
    sample = native.sample if native.available() else sampling.plain
    for options in product((0.3, 1, 1.7), (0, 2, 40), (0, 0.03, 0.6), (1, 0.9, 0.3)):
        for allowed in masks(logits)[:2]:
            want, near = probabilities(logits, allowed, *options)
            if near < 1e-9:  # ties of probabilities and options that are equal to the sum of some
                continue
            tokens = [sample(logits, allowed, *options, draw)[0] for draw in draws]
            got = np.bincount(tokens, minlength=60)
            assert abs(got - n * want).max() <= 1 + 1e-6, (options, allowed is None)
            assert not got[want == 0].any()
            tested += 1
    assert tested > 100


@pytest.mark.parametrize("n", [1, 130, 129_280])
def test_log_probabilities_are_those_of_float64_within_1e_8(n):
    for name, logits in finite_shapes(n):
        exact = logits.astype(np.float64)
        norm = np.log(np.exp(exact - exact.max()).sum())
        for allowed, draw in product(masks(logits), DRAWS):
            token, logprob = sampling.sample(logits, allowed, 1.5, 0, 0, 1, draw)
            assert abs(logprob - (exact[token] - exact.max() - norm)) < 1e-8, name


def test_first_and_last_draw_are_the_first_and_last_token_kept(tier):
    logits = np.log(np.array([0.05, 0.3, 0.25, 0.2, 0.2], np.float32))
    for options, first, last in (
        ((1, 0, 0, 1), 0, 4),
        ((1, 3, 0, 1), 1, 3),
        ((1, 0, 0.8, 1), 1, 2),
        ((1, 0, 0, 0.7), 1, 3),
    ):
        assert native.sample(logits, None, *options, 0)[0] == first
        assert native.sample(logits, None, *options, 2**64 - 1)[0] == last


def test_a_filter_is_met_by_what_is_equal_to_it(tier):
    logits = np.zeros(4, np.float32)
    for sample in (native.sample, sampling.plain):
        assert sample(logits, None, 1, 0, 0, 0.5, 2**64 - 1)[0] == 1
        assert sample(logits, None, 1, 0, 0, 0.5 + 1e-15, 2**64 - 1)[0] == 2
        assert sample(logits, None, 1, 0, 1 - 1e-16, 1, 2**64 - 1)[0] == 3


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("n, at", [(1, 0), (128, 0), (128, 127), (300, 299), (129_280, 70_000)])
def test_logits_that_are_not_finite_are_refused(tier, bad, n, at):
    logits = np.zeros(n, np.float32)
    logits[at] = bad
    for sample, options in product((native.sample, sampling.plain), ((0, 0, 0, 1), (1, 0, 0, 1), (0.5, 3, 0.1, 0.9))):
        with pytest.raises(FloatingPointError):
            sample(logits, None, *options, 0)


def test_a_choice_of_impossible_tokens_is_refused(tier):
    logits = np.array([1, -np.inf, 2], np.float32)
    allowed = np.array([False, True, False])
    for sample in (native.sample, sampling.plain):
        for temperature in (0, 1):
            for args in ((logits, allowed), (logits, np.zeros(3, bool)), (logits[1:2], None)):
                with pytest.raises(FloatingPointError):
                    sample(*args, temperature, 0, 0, 1, 0)


@pytest.mark.parametrize(
    "options",
    [(-1, 0, 0, 1), (np.nan, 0, 0, 1), (np.inf, 0, 0, 1), (1, -1, 0, 1), (1, 0, 1, 1), (1, 0, np.nan, 1), (1, 0, 0, 0),
     (1, 0, 0, 1.1), (1, 0, 0, np.nan)],
)  # fmt: skip
def test_options_out_of_range_are_refused(tier, options):
    with pytest.raises(ValueError):
        native.sample(np.zeros(5, np.float32), None, *options, 0)


def test_sizes_out_of_range_are_refused(tier):
    for logits, allowed in (
        (np.zeros(0, "f"), None),
        (np.zeros(2**18 + 1, "f"), None),
        (np.zeros(5, "f"), np.ones(4, bool)),
    ):
        with pytest.raises(ValueError):
            native.sample(logits, allowed, 1, 0, 0, 1, 0)
