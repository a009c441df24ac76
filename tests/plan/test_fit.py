"""As good as fits: no choice of as many bytes does less damage, and what is chosen fits to the byte."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from v4kernels.formats import FORMATS

from v4cli.errors import ResourceError
from v4cli.model.known import known_config
from v4cli.model.schema import expected_tensors
from v4cli.plan import cost
from v4cli.plan.fit import MATRICES, OFFICIAL, candidates, fit, ranges, rules_of, steps
from v4cli.plan.placement import Budget, make_plan
from v4cli.store.recipe import Named, check, formats_by
from v4cli.store.record import recorded

FLASH = known_config("flash-preview")
LADDER = candidates()


def damages(n_layers, seed):
    """Random ones, less with more bits."""
    rng = np.random.default_rng(seed)
    falling = -np.sort(-rng.random((n_layers, len(MATRICES), len(LADDER) - 1)), axis=-1)
    return {
        (layer, matrix): {**dict(zip(LADDER, map(float, falling[layer, i]))), OFFICIAL: 0.0}
        for layer in range(n_layers)
        for i, matrix in enumerate(MATRICES)
    }


def test_candidates_have_ever_more_bits_up_to_the_official_ones():
    bits = [FORMATS[name].bits for name in LADDER]
    assert LADDER[-1] == OFFICIAL and len(LADDER) >= 3 and bits == sorted(set(bits))


@pytest.mark.parametrize("seed", range(3))
def test_after_any_number_of_steps_no_choice_of_as_many_bytes_does_less_damage(seed):
    damage = damages(2, seed)
    keys, ladder = list(damage), steps(damage, FLASH)
    every = [
        (sum(FORMATS[name].bits for name in names), sum(damage[key][name] for key, name in zip(keys, names)))
        for names in itertools.product(LADDER, repeat=len(keys))
    ]
    chosen = dict.fromkeys(damage, LADDER[0])
    for key, name in [(None, None), *ladder]:
        if key:
            assert FORMATS[name].bits > FORMATS[chosen[key]].bits, "always up"
            chosen[key] = name
        bits = sum(FORMATS[name].bits for name in chosen.values())
        best = min(wrong for size, wrong in every if size <= bits)
        assert sum(damage[key][name] for key, name in chosen.items()) == pytest.approx(best)
    assert set(chosen.values()) == {OFFICIAL}


def test_what_is_chosen_fits_and_the_next_step_would_not():
    config = replace(FLASH, num_hidden_layers=4, compress_ratios=FLASH.compress_ratios[:4])
    damage = damages(4, 0)
    least, most = fit(damage, config, 1 << 40), None
    assert set(least.formats.values()) == {OFFICIAL}, "there is room for all"
    most, ladder = least.ram, steps(damage, config)
    with pytest.raises(ResourceError) as caught:
        fit(damage, config, 1 << 30)
    smallest = int(caught.value.hint.split("M;")[0].removeprefix("--fit ")) << 20
    assert set(fit(damage, config, smallest).formats.values()) == {LADDER[0]}
    with pytest.raises(ResourceError):
        fit(damage, config, smallest - (1 << 20))
    for ram in (smallest + (most - smallest) * part // 5 for part in range(1, 5)):
        choice = fit(damage, config, ram)
        assert choice.ram <= ram and make_plan(choice.needs, Budget(ram, 0, 1, 1, 1)).resident == 1
        n_steps = next(
            n for n in range(len(ladder)) if dict.fromkeys(damage, LADDER[0]) | dict(ladder[:n]) == dict(choice.formats)
        )
        more = dict(choice.formats) | dict(ladder[: n_steps + 1])
        needs = cost.needs_of_release(config, rules_of(more))
        grown = needs.n_experts * needs.slot - choice.needs.n_experts * choice.needs.slot
        assert choice.ram + grown > ram


@pytest.mark.parametrize("seed", range(3))
def test_rules_mean_what_was_chosen_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    formats = {(layer, w): str(rng.choice(LADDER)) for layer in range(43) for w in MATRICES}
    rules, official = rules_of(formats), expected_tensors(known_config("flash"))
    check(Named("fit", rules), official)
    record = recorded(formats_by(rules, official))
    assert {(i, w): record[f"layers.{i}.ffn.experts.*.{w}"] for i, w in formats} == formats
    assert record["mtp.2.ffn.experts.*.w1"] == OFFICIAL and record["head"] == record["layers.3.attn.wq_b"] == "int8"


def test_numbers_as_a_recipe_says_them():
    assert ranges([0, 1, 2, 5, 7, 8]) == ("0-2", "5", "7-8") and ranges([]) == ()
