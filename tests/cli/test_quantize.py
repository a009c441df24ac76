"""`v4 quantize`: a store in any folder, resumed and repaired by the same command."""

import json

from test_cli import v4
from tiny import FLASH_LIKE, random_checkpoint

SHAPE = FLASH_LIKE | {"head_dim": 128, "num_hidden_layers": 2, "compress_ratios": [0, 4]}


def test_store_is_made_run_verified_and_repaired_by_the_command_that_verify_prints(tmp_path):
    source, dest = random_checkpoint(tmp_path / "source", SHAPE), tmp_path / "store"
    done = v4("quantize", source, dest, "--quant", "q4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == sum(f.stat().st_size for f in dest.glob("*.safetensors"))
    assert json.loads(v4("quantize", source, dest, "--json").stdout)["up_to_date"]
    (tmp_path / "ids").write_text("1,2,3,4,5")
    scores = [json.loads(v4("score", "--model", m, "--ids", tmp_path / "ids").stdout)["nll"] for m in (source, dest)]
    assert 0 < abs(scores[0] - scores[1]) < 1
    data = bytearray((dest / "layer-001.safetensors").read_bytes())
    data[-1] ^= 1
    (dest / "layer-001.safetensors").write_bytes(data)
    report = v4("verify", dest, "--json")
    assert report.returncode == 3
    (damage,) = json.loads(report.stdout)["damage"]
    assert damage["repair"] == f"v4 quantize {source} {dest} --part layer-001"
    assert v4(*damage["repair"].split()[1:]).returncode == 0
    assert v4("verify", dest).returncode == 0


def test_bad_use_is_one_line_and_exit_2_or_3(tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, code in (
        ((tmp_path / "empty", tmp_path / "out"), 3),
        ((tmp_path / "gone", tmp_path / "out"), 3),
        ((tmp_path / "empty", tmp_path / "out", "--quant", "q9"), 2),
    ):
        done = v4("quantize", *arguments)
        assert done.returncode == code and "Traceback" not in done.stderr
