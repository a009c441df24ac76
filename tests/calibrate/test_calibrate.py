"""`v4 calibrate` and rounding by it: what experts are given, the same bytes however often it is killed, and less error
at the same bits."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pull.pulling import Listener
from tiny import STORE_LIKE, make_store, random_checkpoint

from v4cli import files
from v4cli.calibrate import layers, texts
from v4cli.chat.tokenizer import Tokenizer
from v4cli.chat.turn import READERS
from v4cli.cli.calibrate import calibrate_model
from v4cli.cli.models import show_model
from v4cli.cli.pull import PullRequest, pull_model
from v4cli.engine.engine import Engine
from v4cli.errors import ModelError, UsageError
from v4cli.paths import NANO
from v4cli.pull.hub import FolderSource
from v4cli.pull.pull import pull
from v4cli.store import calibration, rounding
from v4cli.store.calibration import Calibration
from v4cli.store.formats import DECODE, ENCODE
from v4cli.store.recipe import Rule, named
from v4cli.store.store import Store, open_model

LITTLE = STORE_LIKE | {"num_hidden_layers": 2, "compress_ratios": [0, 4], "num_hash_layers": 1, "n_routed_experts": 4}
LOW = named("q2")
TEXTS = [[(7 * i + i * i * k) % 384 for i in range(300)] for k in (1, 3)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("source") / "m", LITTLE)


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "m.calibration"
    layers.calibrate(open_model(source), TEXTS, path)
    return Calibration.open(path)


def seen(source):
    """What the experts get, by the forward of the engine: hits, sums of squares of x, and of z."""
    engine = Engine.open(source, "reference")
    ops, found = engine.model.ops, {}
    plain, layer = ops.gated, [0]
    begin = engine.model.bank.begin

    def beginning(number, *rest):
        layer[0] = number
        return begin(number, *rest)

    def gated(x, expert, limit, weight):
        z = plain(x, expert, limit, weight)
        experts = ops.tree.layers[layer[0]].ffn.experts
        key = next((layer[0], i) for i, one in enumerate([*experts, expert]) if one is expert)
        n, of_x, of_z = found.get(key, (0, 0, 0))
        found[key] = n + len(x), of_x + x.square().sum(0), of_z + z.square().sum(0)
        return z

    ops.gated, engine.model.bank.begin = gated, beginning
    with torch.inference_mode():
        for ids in TEXTS:
            engine.session().feed(ids)
    return found


def test_a_calibration_has_what_the_engine_gives_the_experts(source, made):
    counted = 0
    for (layer, expert), (n, of_x, of_z) in seen(source).items():
        if expert == LITTLE["n_routed_experts"]:
            continue  # the shared one
        at = f"layers.{layer}."
        assert made.arrays[at + "hits"][expert] == n
        for name, total in (("x", of_x), ("z", of_z)):
            got, want = made.arrays[at + name][expert], (total / n).numpy()
            assert np.allclose(got, want, rtol=2**-7, atol=1e-4 * want.mean()), (at, expert, name)
        counted += n
    assert counted == 2 * LITTLE["num_experts_per_tok"] * 600 and made.tokens == 600
    made.check(open_model(source).config)


def test_what_inputs_have_to_do_with_each_other_is_told_of_each_expert(source, made, monkeypatch):
    x, plain = {}, layers.ReferenceOps.gated

    def gated(self, inputs, expert, limit, weight):
        z = plain(self, inputs, expert, limit, weight)
        if weight is not None:  # not the shared one
            x[len(x)] = inputs, z
        return z

    monkeypatch.setattr(layers.ReferenceOps, "gated", gated)
    layer = layers._Layer(open_model(source), 0)
    streams = made.path.with_name("streams")
    layers._embed(open_model(source), TEXTS, streams)
    layer.run(TEXTS, streams, streams.with_name("after"), lambda n: None)
    for expert, (inputs, z) in x.items():
        hits = len(inputs)
        monkeypatch.setattr(calibration, "PRIOR", 0)
        for known, seen in ((calibration._up(made, 0, expert), inputs), (calibration._down(made, 0, expert), z)):
            moments = seen.t() @ seen / hits
            got = known.factor @ known.factor.t() + known.rest.diag()
            off = got - moments
            off.diagonal().sub_(rounding.DAMPING * moments.diagonal().mean())
            assert float(off.square().mean() / moments.square().mean()) < 0.05**2, expert  # in 8 bits


class Killed(BaseException):
    """What nothing in the program catches."""


def test_killed_before_any_write_it_goes_on_to_the_same_bytes(source, made, tmp_path, monkeypatch):
    out, model = tmp_path / "m.calibration", open_model(source)
    steps = [0]

    def counted(plain):
        def step(*arguments):
            steps[0] -= 1
            if not steps[0]:
                raise Killed
            return plain(*arguments)

        return step

    for module, name in ((layers, "replace"), (files, "write_atomically"), (calibration, "write_atomically")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    for at, kills in ((2, 1), (3, 2), (4, 3), (2, 4), (3, 5)):  # of the steps that are left
        steps[0] = at
        with pytest.raises(Killed):
            layers.calibrate(model, TEXTS, out)
        assert not out.exists() and kills
    steps[0] = -1
    layers.calibrate(model, TEXTS, out)
    assert out.read_bytes() == made.path.read_bytes()
    assert not list(tmp_path.glob(".*layers")), "nothing is left of the work"


@pytest.mark.slow
def test_kill_9_in_the_middle(source, made, tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "m.calibration"
    script.write_text(
        "import json, os, sys\nfrom pathlib import Path\nfrom v4cli.calibrate import layers\n"
        "from v4cli.store.store import open_model\n"
        f"texts = json.loads({json.dumps(json.dumps(TEXTS))})\n"
        "def progress(done, total):\n    if done / total > float(sys.argv[3]): os.kill(os.getpid(), 9)\n"
        "layers.calibrate(open_model(Path(sys.argv[1])), texts, Path(sys.argv[2]), progress)\n"
    )
    for share, code in (("0.3", -9), ("0.8", -9), ("2", 0)):
        assert subprocess.run([sys.executable, script, source, out, share]).returncode == code
    assert out.read_bytes() == made.path.read_bytes()


def test_damage_and_other_models_are_noticed(source, made, tmp_path):
    data = bytearray(made.path.read_bytes())
    for at in (len(data) // 2, len(data) - 1, 40):
        data[at] ^= 1
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ModelError):
            Calibration.open(tmp_path / "x")
        data[at] ^= 1
    (tmp_path / "x").write_bytes(data[:-1])
    with pytest.raises(ModelError, match="truncated"):
        Calibration.open(tmp_path / "x")
    with pytest.raises(UsageError, match="other sizes"):
        made.check(open_model(NANO).config)


def test_carried_errors_cost_less_where_inputs_go_together():
    chance = torch.Generator().manual_seed(2)
    mixing = torch.randn(256, 96, generator=chance)
    x = torch.randn(4000, 96, generator=chance) @ mixing.t() + 0.3 * torch.randn(4000, 256, generator=chance)
    w = torch.randn(64, 256, generator=chance)
    moments = x.t() @ x / len(x)
    factor, squares = torch.linalg.cholesky(moments, upper=True), moments.diagonal()

    def loss(form, factor):
        made = DECODE[form](*rounding.encode(w, form, rounding.Inputs.by(factor, squares)))
        return float((x @ (made - w).t()).square().mean())

    for form in ("q3", "q2"):
        plain = DECODE[form](*ENCODE[form](w))
        assert loss(form, factor) < 0.5 * float((x @ (plain - w).t()).square().mean())
        assert loss(form, factor) < 0.5 * loss(form, torch.zeros(4, 256))


def test_experts_without_hits_are_rounded_by_the_mean_of_their_layer(made):
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))

    def rounded(hits, level):
        few = Calibration(made.path, "", 1, {key: array.copy() for key, array in made.arrays.items()})
        few.arrays["layers.0.hits"][1] = hits
        few.arrays["layers.0.x"][1, ::2] *= level
        return few.encode("layers.0.ffn.experts.1.w1.weight", "q2", w)[0]

    assert torch.equal(rounded(0, 1.0), rounded(0, 100.0)), "what no token said is not asked"
    assert not torch.equal(rounded(calibration.PRIOR, 1.0), rounded(calibration.PRIOR, 100.0))
    assert not made.knows("mtp.0.ffn.experts.1.w1.weight") and made.knows("layers.0.ffn.experts.1.w2.weight")


def stored(source, dest, **options):
    pull(FolderSource(source), dest, LOW, reporter=Listener(), readers=READERS, **options)
    return Store.open(dest)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["q3", "q2"])
def test_of_random_weights_three_tenths_of_the_damage_go(tmp_path, form):
    source, chance = random_checkpoint(tmp_path / "m", STORE_LIKE), np.random.default_rng(1)
    calibrated, asked = chance.integers(512, size=(12, 512)), chance.integers(512, size=300).tolist()
    layers.calibrate(open_model(source), calibrated.tolist(), tmp_path / "m.calibration")
    options = {"reporter": Listener(), "readers": READERS}
    pull(FolderSource(source), tmp_path / "plain", named(form), **options)
    known = Calibration.open(tmp_path / "m.calibration")
    pull(FolderSource(source), tmp_path / "by", named(form), calibration=known, **options)
    teacher, plain, by = (
        torch.from_numpy(Engine.open(path, "reference").session().feed(asked, all_logits=True)).log_softmax(-1)
        for path in (source, tmp_path / "plain", tmp_path / "by")
    )
    before, after = (float((teacher.exp() * (teacher - other)).sum(-1).mean()) for other in (plain, by))
    assert after < 0.7 * before


def test_a_store_names_its_calibration_and_stays_with_it(source, made, tmp_path):
    plain, by = stored(source, tmp_path / "plain"), stored(source, tmp_path / "by", calibration=made)
    assert by.manifest.source["calibration"] == made.record and "calibration" not in plain.manifest.source
    teacher, worse, better = (
        Engine.open(path, "reference").session().feed(TEXTS[0][::-1], all_logits=True)
        for path in (source, plain.path, by.path)
    )
    assert np.square(better - teacher).mean() < np.square(worse - teacher).mean()
    before = (tmp_path / "by" / "layer-001-experts.safetensors").read_bytes()
    stored(source, tmp_path / "by", only="layer-001-experts")  # finds its calibration
    assert (tmp_path / "by" / "layer-001-experts.safetensors").read_bytes() == before
    with pytest.raises(UsageError, match="without a calibration"):
        stored(source, tmp_path / "plain", calibration=made)
    other = tmp_path / "other.calibration"
    layers.calibrate(open_model(source), TEXTS[:1], other)
    with pytest.raises(UsageError, match="another calibration"):
        stored(source, tmp_path / "by", only="layer-001-experts", calibration=Calibration.open(other))
    assert not layers.of_model(by) and layers.of_model(open_model(source))


def test_commands_name_a_calibration_and_do_not_write_over_one(source, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    pull_model(PullRequest(str(source), "q2", "mine", None, False, False, None, 1, True, True, made.path))
    capsys.readouterr()
    show_model("mine", True)
    assert json.loads(capsys.readouterr().out)["calibration"] == made.record
    show_model("mine", False)
    assert f"600 tokens, sha256 {made.sha256[:12]}" in " ".join(capsys.readouterr().out.split())
    before = made.path.read_bytes()
    with pytest.raises(UsageError, match="there already"):
        calibrate_model(str(source), [], 64, made.path, False, True)
    assert made.path.read_bytes() == before
    other = tmp_path / "other"
    other.write_bytes(before)
    calibrate_model(str(source), [], 64, other, True, True)
    assert Calibration.open(other).tokens == 64


def test_generated_texts_are_the_same_for_everyone_and_of_all_kinds():
    tokenizer = Tokenizer.from_file(NANO / "tokenizer.json")
    made = texts.generated(tokenizer, 6000)
    assert made == texts.generated(tokenizer, 6000) and sum(map(len, made)) == 6000
    text = tokenizer.decode([i for ids in texts.generated(tokenizer, 40_000) for i in ids])
    for sign in ("｜DSML｜", "def ", "SELECT", "年", "|---"):
        assert sign in text, sign


def test_texts_of_ones_own_are_cut_into_equal_shares(tmp_path):
    tokenizer = Tokenizer.from_file(NANO / "tokenizer.json")
    for name in "ab":
        (tmp_path / name).write_text("some words " * 3000)
    made = texts.of_files(tokenizer, [tmp_path / "a", tmp_path / "b"], 9000)
    assert sum(map(len, made)) == 9000 and max(map(len, made)) == 4096
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="no text"):
        texts.of_files(tokenizer, [tmp_path / "a"])


@pytest.mark.parametrize("form", ["keep", "int8", "int4", "fp4"])
def test_only_the_rows_of_the_embedding_that_texts_have_are_decoded(source, tmp_path, form):
    model = open_model(source)
    if form != "keep":
        rules = (Rule("experts", "keep"), Rule("linear", "int8"), Rule("embed", form), Rule("head", "int8"))
        model = Store.open(make_store(source, tmp_path / form, recipe=rules))
    rows = torch.tensor([0, 3, 511, 7])
    assert torch.equal(model.dense("embed.weight", rows), model.dense("embed.weight")[rows])


@pytest.mark.parametrize("n", [1, 20, 200, 300])
def test_directions_of_rows_are_those_of_their_moments(n):
    """Few rows, and more than are looked at one by one, with fewer directions than inputs."""
    rows = torch.randn((n, 256), generator=torch.Generator().manual_seed(n)) * torch.logspace(0, -2, 256)
    values, vectors = torch.linalg.eigh(rows.double().t() @ rows.double() / n)
    nearest = (vectors[:, -32:] * values[-32:]) @ vectors[:, -32:].t()
    factor = layers._factor_of_rows(rows, 32).double()
    assert factor.shape == (32, 256)
    assert float((factor.t() @ factor - nearest).norm() / nearest.norm()) < 1e-6
