"""`v4 quantize --fit`: as good as fits, said in a table and in the manifest, resumed without measuring again."""

import json

import numpy as np
import pytest
import tiny

from v4cli.cli import fit as command
from v4cli.cli.pull import quantize_folder
from v4cli.engine.engine import Engine
from v4cli.errors import ResourceError, UsageError
from v4cli.model.config import V4Config
from v4cli.plan.fit import MATRICES, candidates, fit
from v4cli.pull import damage
from v4cli.pull.damage import measure, sample_bytes, sampled
from v4cli.store import calibration
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.formats import DECODE, ENCODE
from v4cli.store.recipe import Named, parse
from v4cli.store.store import Manifest, Store

VALUES = tiny.STORE_LIKE | {"num_hidden_layers": 2, "compress_ratios": [0, 4], "n_routed_experts": 6}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.random_checkpoint(tmp_path_factory.mktemp("fit") / "source", VALUES)


@pytest.fixture(scope="module")
def measured(source):
    checkpoint, looked = Checkpoint.open(source), []
    found = measure(checkpoint.places, checkpoint.config, candidates()[:-1], on_bytes=looked.append)
    assert sum(looked) == sample_bytes(checkpoint.places, checkpoint.config)
    return found


def sizes(source, measured):
    """Bytes within which everything has the fewest bits, and within which nothing has."""
    config = V4Config.load(source)
    each = {key: {**errors, candidates()[-1]: 0.0} for key, errors in measured.items()}
    most = fit(each, config, 1 << 40).ram
    with pytest.raises(ResourceError) as caught:
        fit(each, config, 1 << 20)
    assert "need" in str(caught.value) and caught.value.hint.startswith("--fit ")
    values = 3 * VALUES["hidden_size"] * VALUES["moe_intermediate_size"]
    return most - 12 * values // 4, most


def test_damage_is_the_error_of_each_format_and_of_inputs_that_matter(source, measured):
    checkpoint = Checkpoint.open(source)
    assert len(measured) == 2 * len(MATRICES) and all(q2 > 3 * q3 > 0 for q2, q3 in map(dict.values, measured.values()))
    names = [name for key, name in sampled(checkpoint.config) if key == (1, "w2")]
    assert len(names) == 4
    values = [checkpoint.dense(name) for name in names]
    wrong = sum(float((DECODE["q2"](*ENCODE["q2"](one)) - one).square().sum()) for one in values)
    assert measured[1, "w2"]["q2"] == pytest.approx(wrong / sum(float(one.square().sum()) for one in values), rel=1e-4)

    def first_alone(name):
        """One expert is used, and one of its inputs."""
        weight = checkpoint.dense(name).new_full((checkpoint.dense(name).shape[1],), 1e-9)
        weight[0] = 1.0 if ".experts.0." in name else 1e-9
        return weight

    found = measure(checkpoint.places, checkpoint.config, ["q2"], first_alone)
    one = values[0]
    wrong = (DECODE["q2"](*ENCODE["q2"](one)) - one)[:, 0].square().sum() / one[:, 0].square().sum()
    assert found[1, "w2"]["q2"] == pytest.approx(float(wrong), rel=1e-3)


def test_a_calibration_says_which_inputs_and_experts_count(source, tmp_path, monkeypatch):
    config, rng, asked = V4Config.load(source), np.random.default_rng(0), []
    arrays = {name: rng.random(shape, np.float32) for name, (_, shape) in calibration.shapes(config).items()}
    arrays |= {name: np.arange(6) * 100 for name in arrays if name.endswith("hits")}
    known = calibration.Calibration(tmp_path / "known", "", 1000, arrays)
    squares = arrays["layers.1.z"]
    layer = calibration.PRIOR * np.average(squares, axis=0, weights=np.arange(6))
    for expert, times in ((3, 300), (0, 1)):  # of the latter nothing is known: its layer's inputs stand for its own
        mean = (300 * squares[3] + layer) / (300 + calibration.PRIOR) if expert else layer / calibration.PRIOR
        told = known.importance(f"layers.1.ffn.experts.{expert}.w2.weight").numpy()
        assert told == pytest.approx(times * (mean + 0.01 * mean.mean()), rel=1e-4)

    def heard(places, config, formats, importance, on_bytes):
        asked.append(importance)
        return {(layer, w): {"q2": 0.08, "q3": 0.02} for layer in range(2) for w in MATRICES}

    monkeypatch.setattr(damage, "measure", heard)
    command.fitted(source, tmp_path / "store", "1G", known)
    assert asked == [known.importance]


def test_what_is_chosen_is_told_kept_and_gone_on_with(source, measured, tmp_path, capsys, monkeypatch):
    low, high = sizes(source, measured)
    size, dest = str((low + 3 * high) // 4), tmp_path / "store"
    quantize_folder(str(source), dest, None, size, None, as_json=False)
    told = capsys.readouterr().out
    assert "LAYERS" in told and "w2 (ERROR)" in told and "quality: not measured" in told
    manifest, opened = Manifest.load(dest), Store.open(dest)
    formats = {form for name, form in opened.formats.items() if ".ffn.experts." in name}
    assert manifest.quant == f"fit-{size}" and len(formats) >= 2
    assert parse(manifest.recipe, "", UsageError) == manifest.named
    assert Engine.open(dest, "reference").session().feed([1, 2, 3]).shape
    manifest.complete = False
    (dest / "head.safetensors").unlink()
    del manifest.files["head.safetensors"]
    manifest.save(dest)
    monkeypatch.setattr(command, "fit", lambda *_: pytest.fail("it was chosen before"))
    quantize_folder(str(source), dest, None, size, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["written"] and Store.open(dest).formats == opened.formats
    with pytest.raises(UsageError, match=f"store is fit-{size}, not fit-2G"):
        quantize_folder(str(source), dest, None, "2G", None, as_json=False)


def test_too_little_says_the_least_that_would_do(source, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(damage, "measure", lambda *_, **more: measured)
    with pytest.raises(ResourceError, match=r"experts of 2.25 bits and all else need [0-9,]+ MiB, 64 MiB") as caught:
        quantize_folder(str(source), tmp_path / "store", None, "64M", None, as_json=False)
    least = caught.value.hint.split(";")[0].removeprefix("--fit ")
    recipe, about = command.fitted(source, tmp_path / "store", least)
    assert isinstance(recipe, Named) and about["needs_ram"] <= about["ram"] and not (tmp_path / "store").exists()
    with pytest.raises(UsageError, match="exclude each other"):
        quantize_folder(str(source), tmp_path / "store", "q2", "1G", None, as_json=False)
