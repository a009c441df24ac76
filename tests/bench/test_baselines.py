"""What the kernels are shown beside: layers of the right sizes, or why there are none."""

import sys

import pytest
import torch

from v4cli import hardware
from v4cli.bench import kernels
from v4cli.bench.baselines import baselines


def test_every_layer_multiplies_and_says_what_it_reads():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is made for few systems only")
    bits = {"torch bf16": 16, "bitsandbytes nf4": 4.125, "bitsandbytes int8": 8 + 32 / 256}
    with torch.inference_mode():
        made = {name: make(128, 256, 3, "cpu") for name, make in baselines().items()}
        assert {name: 8 * n_bytes / (128 * 256) for name, (_, n_bytes) in made.items()} == bits
        assert [work().shape for work, _ in made.values()] == [(3, 128)] * 3


def test_what_is_not_installed_or_does_not_run_has_a_row_that_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = baselines()
    assert list(found) == ["torch bf16", "bitsandbytes nf4", "bitsandbytes int8"]
    assert {why for why in list(found.values())[1:]} == {"bitsandbytes is not installed: pip install 'v4cli[gpu]'"}

    def broken(*asked):
        raise RuntimeError("no such kernel\nat all")

    monkeypatch.setattr(kernels, "baselines", lambda: {"a": found["bitsandbytes nf4"], "b": broken})
    monkeypatch.setattr(kernels, "torch_linear", lambda dtype: broken)
    monkeypatch.setattr(hardware, "PROBE_RAM", 1 << 10)
    rows = {row.op: row.note for row in kernels.other_libraries(1)}
    assert rows == {
        "torch fp32 linear": "RuntimeError: no such kernel", "a linear": found["bitsandbytes nf4"],
        "b linear": "RuntimeError: no such kernel",
    }  # fmt: skip
