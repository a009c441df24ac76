"""The status lines."""

from types import SimpleNamespace

import pytest
import tiny
from v4kernels import native

from v4cli.engine.engine import Engine
from v4cli.repl import items
from v4cli.repl.status import Status, joined


@pytest.mark.skipif(not native.available(), reason="needs the kernel library")
def test_experts_on_demand_are_shown_while_they_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr("v4cli.plan.budget.CONTEXT", 512)
    store = tiny.make_store(tiny.random_checkpoint(tmp_path / "source", tiny.STORE_LIKE), tmp_path / "store")
    engine = Engine.open(store, "cpu", ram=least_of(store))
    session = engine.session()
    status = Status("tiny")
    status.dialogue = SimpleNamespace(chat=SimpleNamespace(engine=engine, session=session, ids=[]))
    status.take(items.Ready("tiny"))
    assert status.experts() == []
    status.take(items.Experts(True))
    status.take(items.Asked("?"))
    assert "0% hits" in status.experts()
    session.sync(range(100))
    now = status.experts()
    assert now[0].endswith(f"of {len(engine.stream.reader.files)} in memory") and "GB/s" in now[2]
    assert engine.counts().bytes_read > 0
    status.take(items.Finished())
    session.sync(range(200))
    assert status.experts()[1:] == now[1:], "of the last question, until the next one"
    status.take(items.Experts(False))
    assert status.experts() == []


def least_of(store) -> int:
    """The smallest budget that the model runs in."""
    from v4cli.errors import ResourceError

    with pytest.raises(ResourceError) as told:
        Engine.open(store, "cpu", ram=1 << 20)
    return int(told.value.hint.removeprefix("--ram ").removesuffix("M")) << 20


def test_parts_that_do_not_fit_are_left_out():
    assert joined(["answering", "nano", "5 tokens"], 16) == "answering · nano"
    assert joined(["answering", "nano"], 4) == "answ"
