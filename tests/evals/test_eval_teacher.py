"""The reference's logits: what is kept of them, how far others are from it, the file; and the noise floor."""

import numpy as np
import pytest
from tiny import SMALL, random_checkpoint

from v4cli.engine.engine import Engine
from v4cli.errors import ModelError
from v4cli.evals.floor import nudged
from v4cli.evals.teacher import ABOUT, KIND, Rows, Teacher, divergence

SHAPE = SMALL | {"head_dim": 128, "num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "index_topk": 8}


def logits(seed: int, vocab: int = 300, n: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=(n, vocab)).astype(np.float32)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_rows_hold_the_likeliest_and_the_rest():
    a = logits(0)
    rows, logp = Rows.of(a, range(20)), log_softmax(a)
    assert rows.ids.shape == (20, 64) and np.array_equal(rows.ids[:, 0], a.argmax(-1))
    assert np.allclose(np.exp(rows.logp).sum(-1) + rows.rest, 1, atol=1e-6)
    assert np.allclose(rows.nll, -logp[range(20), range(20)], atol=1e-5)
    assert (np.diff(rows.logp, axis=1) <= 0).all()


def test_divergence_is_a_little_less_than_over_all_tokens_and_0_of_the_same():
    a, b = logits(0), logits(0) + 0.3 * logits(1)
    rows = Rows.of(a, [0] * 20)
    found = divergence(rows, Rows.of(b, [0] * 20, rows.ids))
    p, q = log_softmax(a), log_softmax(b)
    over_all = (np.exp(p) * (p - q)).sum(-1)
    assert (found > 0).all() and (found < over_all + 1e-6).all() and found.sum() > 0.8 * over_all.sum()
    assert not divergence(rows, Rows.of(a, [0] * 20, rows.ids)).any()


def test_a_vocabulary_smaller_than_what_is_kept_loses_nothing():
    a, b = logits(2, vocab=40), logits(3, vocab=40)
    rows = Rows.of(a, [0] * 20)
    p, q = log_softmax(a), log_softmax(b)
    assert np.allclose(divergence(rows, Rows.of(b, [0] * 20, rows.ids)), (np.exp(p) * (p - q)).sum(-1), atol=1e-5)


def test_the_file_gives_back_what_it_was_given_and_refuses_what_is_no_such_file(tmp_path):
    about = dict(zip(ABOUT, (KIND, "m", "w", "int8", "t", "d", 300, 0)))
    teacher, rows = Teacher(tmp_path / "a.teacher", about), Rows.of(logits(0), range(20))
    teacher.put("0.0-20", rows)
    again = Teacher.load(tmp_path / "a.teacher")
    assert again.has("0.0-20") and not again.has("0.0-20", floor=True) and again.floor("0.0-20") == {}
    assert again.id == teacher.id != Teacher(tmp_path, about | {"seed": 1}).id
    assert not divergence(again.rows("0.0-20"), rows).any()
    teacher.put_floor("0.0-20", np.full(20, 0.5), np.ones(20, bool))
    assert Teacher.load(teacher.path).floor("0.0-20")["floor"].tolist() == [0.5] * 20
    data = bytearray(teacher.path.read_bytes())
    data[-5] ^= 1
    teacher.path.write_bytes(data)
    with pytest.raises(ModelError, match="checksum"):
        Teacher.load(teacher.path)
    Teacher(teacher.path, {"kind": "other"}).put("0", rows)
    with pytest.raises(ModelError, match="not a teacher"):
        Teacher.load(teacher.path)


def test_windows_that_do_not_fit_are_refused(tmp_path):
    about = dict(zip(ABOUT, (KIND, "m", "w", "int8", "t", "d", 10, 0)))
    Teacher(tmp_path / "a.teacher", about).put("0", Rows.of(logits(0), range(20)))
    with pytest.raises(ModelError, match="tokens that are not there"):
        Teacher.load(tmp_path / "a.teacher").rows("0")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_nudge_moves_the_output_a_little_and_is_taken_back(backend, tmp_path):
    engine = Engine.open(random_checkpoint(tmp_path / "m", SHAPE, shards=1), backend)
    ids = np.random.default_rng(0).integers(0, 512, 40).tolist()
    before = engine.session().feed(ids, all_logits=True)
    with nudged(engine, 0):
        moved = engine.session().feed(ids, all_logits=True)
    rows = Rows.of(before, [0] * 40)
    assert 0 < divergence(rows, Rows.of(moved, [0] * 40, rows.ids)).mean() < 0.2
    assert np.array_equal(engine.session().feed(ids, all_logits=True), before)
