"""Built-in configs and random checkpoints."""

import pytest
import torch

from v4cli.bench.synthetic import shape, write_synthetic
from v4cli.engine.engine import Engine
from v4cli.model.config import V4Config
from v4cli.model.known import known_config

FILES = {
    "flash": "v4_flash_0731",
    "pro": "v4_pro_0813",
    "flash-preview": "v4_flash",
    "pro-preview": "v4_pro",
}


@pytest.mark.parametrize("name", FILES)
def test_built_in_configs_are_the_official_ones(golden, name):
    assert known_config(name) == V4Config.load(golden / "configs" / f"{FILES[name]}.json")


def test_random_checkpoint_opens_and_gives_ordinary_logits(tmp_path):
    folder = write_synthetic(tmp_path / "random", shape("small", 4))
    logits = Engine.open(folder).session().feed(list(range(300)), all_logits=True)
    assert torch.tensor(logits).isfinite().all()
    assert 0.3 < logits.std() < 3
