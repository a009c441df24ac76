"""The sampler: what is drawn from, and where its randomness comes from."""

from math import sqrt

import numpy as np
import pytest

from v4cli.engine.sampler import Sampler, Sampling, random_bits
from v4cli.errors import V4Error

LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))


def fits(counts, expected):
    """Whether Pearson's statistic is below its 1 - 10^-6 quantile, by Wilson and Hilferty (z = 4.753)."""
    df = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic < df * (1 - 2 / (9 * df) + 4.753 * sqrt(2 / (9 * df))) ** 3


def test_filters_keep_exactly_the_tokens_they_should():
    def seen(**options):
        sampler = Sampler(Sampling(seed=0, **options))
        return {sampler.pick(LOGITS, position)[0] for position in range(400)}

    assert seen() == {0, 1, 2, 3, 4}
    assert seen(top_k=2) == {0, 1}
    assert seen(top_p=0.69) == {0, 1}
    assert seen(top_p=0.71) == {0, 1, 2}
    assert seen(min_p=0.4) == {0, 1, 2}
    assert seen(top_k=4, min_p=0.14, top_p=0.5) == {0, 1}  # 0.4 of the 0.96 kept is not half
    assert seen(temperature=0.0) == {0}
    assert Sampler(Sampling(temperature=0.0)).pick(LOGITS, 0)[1] == pytest.approx(np.log(0.4), abs=1e-6)


def test_only_allowed_tokens_are_drawn_and_their_log_probability_is_the_model_s():
    logits = np.zeros(50, np.float32)
    logits[0] = 900.0  # so likely that all others underflow beside it
    allowed = np.zeros(50, bool)
    allowed[[7, 9]] = True
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (2.0, 0.9)):
        sampler = Sampler(Sampling(temperature, top_p, seed=1))
        picked = [sampler.pick(logits, position, allowed) for position in range(20)]
        assert {token for token, _ in picked} == ({7} if temperature == 0 else {7, 9})
        assert all(logprob == pytest.approx(-900.0) for _, logprob in picked)
    with pytest.raises(V4Error, match="leaves no token"):
        sampler.pick(logits, 0, np.zeros(50, bool))


@pytest.mark.parametrize(
    "options, tokens",
    [
        ({}, 5),
        ({"temperature": 0.5}, 5),
        ({"temperature": 2.0}, 5),
        ({"top_k": 3}, 3),
        ({"min_p": 0.12}, 4),
        ({"temperature": 1.5, "top_k": 4, "top_p": 0.8}, 3),
    ],
)
def test_tokens_come_as_often_as_they_should(options, tokens):
    n = 20_000
    sampler = Sampler(Sampling(seed=5, **options))
    counts = np.bincount([sampler.pick(LOGITS, position)[0] for position in range(n)], minlength=5)
    p = np.exp(LOGITS[:tokens].astype(float) / options.get("temperature", 1.0))
    assert not counts[tokens:].any()
    assert fits(counts[:tokens], n * p / p.sum())
    assert not fits(counts[:tokens], n * np.full(tokens, 1 / tokens)), "the test must be able to fail"


def test_random_bits_are_splitmix64():
    """Its published first outputs from state 0."""
    assert [random_bits(0, i) for i in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(
    "number",
    [
        lambda i: random_bits(7, i),
        lambda i: random_bits(i, 1000),  # seeds in a row
        lambda i: random_bits(i, i),
        lambda i: random_bits(7, i) ^ random_bits(7, i + 1),
        lambda i: random_bits(i, 3) ^ random_bits(i + 1, 3),
        lambda i: random_bits(i, 4) ^ random_bits(i + 1, 3),
    ],
)
def test_random_bits_of_positions_and_seeds_have_nothing_in_common(number):
    n = 20_000
    numbers = np.array([number(i) for i in range(n)], np.uint64)
    for shift in (56, 28, 0):
        counts = np.bincount(((numbers >> np.uint64(shift)) & np.uint64(255)).astype(int), minlength=256)
        assert fits(counts, np.full(256, n / 256))


def test_a_draw_depends_on_seed_and_position_alone():
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    sampler = Sampler(Sampling(seed=3))
    forward = [sampler.pick(logits, position) for position in range(50)]
    assert forward == [Sampler(Sampling(seed=3)).pick(logits, position) for position in range(50)]
    assert forward[::-1] == [sampler.pick(logits, position) for position in reversed(range(50))]
    assert forward != [Sampler(Sampling(seed=4)).pick(logits, position) for position in range(50)]
    assert len({token for token, _ in forward}) > 25
    assert Sampler(Sampling()).seed != Sampler(Sampling()).seed
