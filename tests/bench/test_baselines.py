"""What the kernels are shown beside: layers of the right sizes, left out where their library is missing."""

import sys

import pytest
import torch

from v4cli.bench.baselines import baselines


def test_every_layer_multiplies_and_says_what_it_reads():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is made for few systems only")
    bits = {"torch bf16": 16, "bitsandbytes nf4": 4.125, "bitsandbytes int8": 8 + 32 / 256}
    with torch.inference_mode():
        made = {name: make(128, 256, 3, "cpu") for name, make in baselines().items()}
        assert {name: 8 * n_bytes / (128 * 256) for name, (_, n_bytes) in made.items()} == bits
        assert [work().shape for work, _ in made.values()] == [(3, 128)] * 3


def test_what_is_not_installed_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert list(baselines()) == ["torch bf16"]
    assert "pip install 'v4cli[gpu]'" in capsys.readouterr().err
