"""What recipes make of Flash: bytes on disk as published, and what of it a machine holds."""

import json
from pathlib import Path

import pytest

from v4cli.cli.plan import plan_model
from v4cli.cli.plan_card import Wanted
from v4cli.errors import UsageError
from v4cli.model.known import known_config
from v4cli.plan import cost
from v4cli.plan.placement import Budget, make_plan
from v4cli.plan.recipes import offers
from v4cli.store.recipe import RECIPES, Rule, parse

FLASH = known_config("flash")
GB = {"q3": 120.95, "q2": 86.32}  # on disk, without draft blocks
GIB = 1 << 30


@pytest.fixture(scope="module")
def made():
    return {offer.recipe.name: offer for offer in offers(FLASH, False, 32_768, 1)}


def test_files_are_as_large_as_published(made):
    assert list(made) == list(RECIPES)
    for name, size in GB.items():
        assert made[name].file_bytes == pytest.approx(size * 1e9, rel=0.01)
    told = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text()
    recipe = parse(json.loads(told.split("```json")[1].split("```")[0]), "docs", UsageError)
    assert recipe.rules[:2] == (Rule("experts", "q3", matrices=("w2",)), Rule("experts", "q2"))
    needs = cost.needs_of_release(FLASH, recipe.rules)
    held = sum(use.held for use in needs.dense) + needs.head + needs.embed.held + needs.n_experts * needs.expert
    assert held == pytest.approx(97.86e9, rel=0.01)


def test_bits_fall_and_w2_and_the_layers_at_both_ends_have_more(made):
    bits = [made[name].bits for name in ("native", "q3", "mix", "q2")]
    assert bits == pytest.approx([4.25, 3.25, (34 * 7.75 + 9 * 10.75) / 129, 2.25], abs=0.01)
    reads = [made[name].read_bytes_per_token for name in ("native", "q3", "mix", "q2")]
    assert reads == sorted(reads, reverse=True) and len(made["mix"].needs.kinds) == 2


@pytest.mark.parametrize("name", ["native", "q3", "mix", "q2"])
def test_all_is_in_memory_from_there_on(made, name):
    needs, ram = made[name].needs, made[name].ram
    assert make_plan(needs, Budget(ram, 0, 1, 1, 1)).resident == 1
    assert make_plan(needs, Budget(ram - needs.embed.held - needs.slot, 0, 1, 1, 1)).resident < 1


def test_plan_sets_all_recipes_side_by_side(capsys):
    wanted = Wanted("0", None, None, False)
    plan_model("flash", "100G", wanted, None, 1, None, as_json=True)
    rows = json.loads(capsys.readouterr().out)["recipes"]
    assert [row["name"] for row in rows] == list(RECIPES) and {row["quality"] for row in rows} == {"not measured"}
    shares = {row["name"]: row["resident_experts"] for row in rows}
    assert shares["native"] < shares["q3"] < 1 and shares["mix"] == shares["q2"] == 1
    slow, fast = (next(row for row in rows if row["name"] == name)["seconds_per_token"] for name in ("native", "q2"))
    assert fast["pessimistic"] < slow["pessimistic"]
    plan_model("flash", "100G", wanted, None, 1, "mix", as_json=False)
    told = capsys.readouterr().out
    assert "flash (not on this machine), mix: experts of 2.25 bits" in told
    assert sum(line.split()[:1] == [name] for line in told.splitlines() for name in RECIPES) == len(RECIPES)
    assert told.count("not measured") == len(RECIPES)
