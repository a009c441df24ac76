"""Recipes as data: what a file may say, what is refused in one line, and what becomes of it in a store."""

import json

import pytest
import tiny
from pull.pulling import Listener

from v4cli.cli.models import describe
from v4cli.errors import ModelError, UsageError
from v4cli.model.known import known_config
from v4cli.model.schema import expected_tensors
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import plan_pull, pull
from v4cli.store.recipe import RECIPES, Named, Rule, check, formats_by, named, parse
from v4cli.store.record import expert_bits, recorded
from v4cli.store.store import Manifest, Store

RULES = [
    {"about": "experts", "format": "int8", "layers": ["hash", "last 1", 2], "matrices": ["w2"]},
    {"about": "experts", "format": "int4"},
    {"about": "linear", "format": "int8", "layers": ["0-1"]},
    {"about": "linear", "format": "int4"},
    {"about": "embed", "format": "int8"},
]
MINE = {"name": "mine", "about": "for a test", "rules": RULES}


@pytest.fixture
def write(tmp_path):
    def written(data, name="mine.json"):
        (tmp_path / name).write_text(data if isinstance(data, str) else json.dumps(data))
        return str(tmp_path / name)

    return written


@pytest.fixture(scope="module")
def flash():
    return expected_tensors(known_config("flash"))


@pytest.mark.parametrize("name", RECIPES)
def test_what_comes_along_is_the_same_data_and_suits_every_release(name, flash, write):
    recipe = named(name)
    assert recipe == RECIPES[name] and parse(json.loads(json.dumps(recipe.data)), "", ModelError) == recipe
    check(recipe, flash)
    check(recipe, expected_tensors(tiny.config(tiny.STORE_LIKE), False))
    with pytest.raises(UsageError, match="comes along"):
        named(write(recipe.data))


def test_layers_are_said_by_number_by_range_and_by_what_they_are(write, source):
    path = write(MINE)
    official = expected_tensors(tiny.config(tiny.STORE_LIKE), False)
    formats = recorded(formats_by(named(path).rules, official))
    n_hash = tiny.STORE_LIKE["num_hash_layers"]
    assert n_hash == 2 and tiny.STORE_LIKE["num_hidden_layers"] == 4
    assert [formats[f"layers.{i}.ffn.experts.*.w2"] for i in range(4)] == ["int8"] * 4
    assert [formats[f"layers.{i}.ffn.experts.*.w1"] for i in range(4)] == ["int4"] * 4
    assert [formats[f"layers.{i}.attn.wq_b"] for i in range(4)] == ["int8", "int8", "int4", "int4"]
    assert formats["head"] == "bf16" and formats["embed"] == "int8"
    assert expert_bits(formats) == pytest.approx((8.5 + 4.5 + 4.5) / 3)


def test_layers_of_a_release_and_its_draft_blocks(flash):
    rules = (
        Rule("experts", "int8", ("hash", "last 6"), ("w2",)),
        Rule("experts", "int4", ("drafts",)),
        Rule("experts", "keep"),
    )
    formats = recorded(formats_by(rules, flash))
    w2 = [formats[f"layers.{i}.ffn.experts.*.w2"] for i in range(43)]
    assert [i for i, form in enumerate(w2) if form == "int8"] == [0, 1, 2, *range(37, 43)]
    assert {formats[f"mtp.{i}.ffn.experts.*.{w}"] for i in range(3) for w in ("w1", "w2", "w3")} == {"int4"}
    assert formats["layers.0.ffn.experts.*.w1"] == "fp4"


def rule(**changes):
    return {"name": "mine", "rules": [{"about": "experts", "format": "int8"} | changes]}


WRONG = {
    "not JSON": ("{", "not valid JSON"),
    "a list": ([], "not a recipe"),
    "no rules": ({"name": "mine"}, "not a recipe"),
    "no name": ({"rules": []}, "name is not a line"),
    "a name of two lines": ({"name": "a\nb", "rules": []}, "name is not a line"),
    "an odd key": (MINE | {"rule": 1}, "'rule' is none of name, about, rules"),
    "a rule that is none": ({"name": "mine", "rules": [3]}, "rule 1: not an object"),
    "an odd key of a rule": (rule(layer=[1]), "rule 1: 'layer' is none of about, format, layers"),
    "an unknown class": (rule(about="norms"), "rule 1: about: 'norms' is none of experts, linear, embed, head"),
    "an unknown format": (rule(format="q9"), "rule 1: format: 'q9' is none of keep, fp4"),
    "a format that nothing becomes": (rule(format="fp8"), "format: 'fp8' is none of"),
    "no list": (rule(layers=3), "layers: not a list"),
    "an empty list": (rule(matrices=[]), "matrices: not a list of one or more"),
    "an odd layer": (rule(layers=["first"]), "layers: 'first' is no number, range"),
    "a range backwards": (rule(layers=["5-2"]), "layers: '5-2' is no number"),
    "a negative layer": (rule(layers=[-1]), "layers: -1 is no number"),
    "the last none": (rule(layers=["last 0"]), "layers: 'last 0' is no number"),
    "odd digits": (rule(layers=["٣"]), "layers: '٣' is no number"),
    "a number for a name": (rule(matrices=[1]), "matrices: 1 is no name"),
    "layers of the head": (rule(about="head", layers=[1]), "layers: head is in none"),
    "experts of the rest": (rule(about="linear", experts=[1]), "experts: linear has none"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_recipe_is_refused_in_one_line(write, what):
    data, says = WRONG[what]
    path = write(data)
    with pytest.raises(UsageError) as caught:
        named(path)
    assert says in str(caught.value) and str(caught.value).startswith(path) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["q9", "./nothing", "nothing.json"])
def test_what_is_neither_a_name_nor_a_file_says_what_there_is(text):
    with pytest.raises(UsageError) as caught:
        named(text)
    assert text in str(caught.value) and "native, q4" in caught.value.hint


UNFIT = {
    "a layer that is not there": ([Rule("experts", "int8", ("0-4",))], "rule 1: layers: 0-4: the model has 0 to 3"),
    "an expert that is not there": (
        [Rule("experts", "int8", experts=("8",))],
        "rule 1: experts: 8: a layer has 0 to 7",
    ),
    "a matrix that is not there": ([Rule("linear", "int8", matrices=("wq_c",))], "rule 1: matrices: wq_c is none of"),
    "a rule after all": ([Rule("experts", "int8"), Rule("experts", "int4", ("1",))], "rule 2: decides nothing: rule 1"),
    "the same twice": ([Rule("embed", "int8"), Rule("embed", "int4")], "rule 2: decides nothing: rule 1"),
    "an overlap": (
        [Rule("experts", "int8", ("0-2",)), Rule("experts", "int4", ("2-3",))],
        "rule 2: overlaps rule 1 (layers 2)",
    ),
    "an overlap crosswise": (
        [Rule("experts", "int8", matrices=("w2",)), Rule("experts", "int4", ("0-1",))],
        "rule 2: overlaps rule 1 (layers 0, 1)",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_makes_no_sense_for_a_model_is_refused_before_anything_is_written(source, tmp_path, what):
    rules, says = UNFIT[what]
    for run in (plan_pull, pull):
        with pytest.raises(UsageError) as caught:
            run(FolderSource(source), tmp_path / "m", Named("mine", tuple(rules)), reporter=Listener())
        assert f"recipe mine: {says}" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_overlaps_that_say_the_same_and_exceptions_are_fine(source):
    official = expected_tensors(tiny.config(tiny.STORE_LIKE), False)
    check(Named("", (Rule("experts", "int8", ("0-2",)), Rule("experts", "int8", ("2-3",)))), official)
    check(Named("", (Rule("experts", "int8", ("1",), ("w2",)), Rule("experts", "int4", ("0-1",)))), official)


def test_a_store_keeps_its_recipe_tells_it_and_goes_on_by_it_alone(source, write, tmp_path):
    official, dest = FolderSource(source), tmp_path / "store"
    pull(official, dest, named(write(MINE)), reporter=Listener())
    manifest = Manifest.load(dest)
    assert manifest.quant == "mine" and manifest.recipe == named(write(MINE)).data
    assert Store.open(dest).formats["layers.0.ffn.experts.0.w2.weight"] == "int8"
    assert pull(official, dest, reporter=Listener()) is None, "no need to say it again"
    about = describe(str(dest))
    assert about["quantization"] == "mine: for a test" and about["expert_bits"] == pytest.approx(17.5 / 3)
    assert pull(official, tmp_path / "again", named(write(about["recipe"], "told.json")), reporter=Listener())
    assert Manifest.load(tmp_path / "again").formats == manifest.formats, "what show tells is a recipe"
    with pytest.raises(UsageError, match="is by another recipe called mine"):
        pull(official, dest, named(write(MINE | {"rules": RULES[1:]})), reporter=Listener())
    with pytest.raises(UsageError, match="is mine, not native"):
        pull(official, dest, RECIPES["native"], reporter=Listener())


def test_a_manifest_whose_recipe_is_none_is_refused(source, tmp_path):
    folder = tiny.make_store(source, tmp_path / "m")
    manifest = Manifest.load(folder)
    manifest.recipe = {"name": "mine", "rules": [{"about": "experts", "format": "q9"}]}
    manifest.save(folder)
    with pytest.raises(ModelError, match="recipe is missing or not valid"):
        Manifest.load(folder)
