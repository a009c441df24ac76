"""`v4 doctor` on machines with a GPU and without: driver and device are fake."""

import json

import pytest
from test_cli import v4

from v4cli import hardware
from v4cli.chat.turn import Chat
from v4cli.cli.app import app
from v4cli.engine import gpu
from v4cli.engine.gpu import Lack
from v4cli.errors import UsageError
from v4cli.hardware import Gpu

CARD = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", "580.1", "8.9", 24 << 30, 23 << 30)


@pytest.fixture
def doctor(monkeypatch, capsys, tmp_path):
    """doctor(): lines about GPUs by name, and the exit code."""
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(hardware, "gpus", lambda: [CARD])
    monkeypatch.setattr(gpu, "lack", lambda number=None: None)
    monkeypatch.setattr(gpu, "device", lambda number=0: "device")

    def run(*options):
        code = 0
        try:
            app(["doctor", *options, "--json"], standalone_mode=False)
        except SystemExit as leaving:
            code = leaving.code
        found = {line["check"]: line for line in json.loads(capsys.readouterr().out)}
        return {name: line for name, line in found.items() if name.startswith("gpu")}, code

    return run


@pytest.fixture
def passes(monkeypatch):
    """The checks of a card; an answer says what is wrong."""
    pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
    from v4kernels.triton import measure

    from v4cli.engine import on_card

    asked = {"answer": "", "measured": 0}

    def limits(device):
        asked["measured"] += 1
        return measure.Limits(9e11, 2.4e10, 5e-6, 1e-6)

    monkeypatch.setattr(on_card, "checks", lambda: {"one step": lambda device: asked["answer"]})
    monkeypatch.setattr(measure, "limits", limits)
    return asked


def test_no_gpu_is_no_fault(doctor, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr(gpu, "lack", lambda number=None: Lack("no GPU is here", "nvidia-smi tells more"))
    lines, code = doctor()
    assert list(lines) == ["gpu"] and lines["gpu"]["status"] == "ok" and "no GPU is here" in lines["gpu"]["detail"]
    assert code == 0


def test_a_card_that_lacks_something_is_told_what(doctor, monkeypatch):
    monkeypatch.setattr(gpu, "lack", lambda number=None: Lack("triton is not installed", gpu.INSTALL))
    lines, _ = doctor()
    for part in (CARD.name, "8.9", "580.1", "torch", "23.00 GiB free of 24.00 GiB"):
        assert part in lines["gpu 0"]["detail"], part
    assert lines["gpu kernels"]["status"] == "warn" and lines["gpu kernels"]["fix"] == "pip install 'v4cli[gpu]'"
    assert "gpu check" not in lines and gpu.recall(CARD) is None


def test_a_card_that_passes_is_measured_once_and_used_from_then_on(doctor, passes, tmp_path):
    assert gpu.chosen(None) is None
    (tmp_path / "triton" / "a").mkdir(parents=True)
    (tmp_path / "triton" / "a" / "quantize.cubin").touch()
    lines, code = doctor()
    assert code == 0 and lines["gpu check"]["status"] == "ok" and "one step" in lines["gpu check"]["detail"]
    assert "1 compiled" in lines["gpu kernels"]["detail"] and str(tmp_path / "triton") in lines["gpu kernels"]["detail"]
    assert "VRAM 900.0 GB/s, PCIe 24.0 GB/s, measured now" in lines["gpu speed"]["detail"]
    assert gpu.chosen(None) == "triton" and gpu.rated(CARD).measured == {"read", "link"}
    again, _ = doctor()
    assert "measured before" in again["gpu speed"]["detail"] and passes["measured"] == 1


def test_a_card_that_computes_something_else_fails_and_is_not_used(doctor, passes):
    doctor()
    passes["answer"] = "3 of 512 logits are not the CPU's"
    lines, code = doctor()
    assert code == 1 and lines["gpu check"]["status"] == "fail" and "3 of 512" in lines["gpu check"]["detail"]
    assert gpu.chosen(None) is None


def test_any_card_can_be_examined_and_all_are_listed(doctor, passes, monkeypatch):
    """The one that is asked for, else that of the settings."""
    other = CARD._replace(number=1, name="NVIDIA H200", uuid="GPU-2")
    asked = []
    monkeypatch.setattr(hardware, "gpus", lambda: [CARD, other])
    monkeypatch.setattr(gpu, "device", lambda number=0: asked.append(number))
    lines, _ = doctor("--gpu", "1")
    assert asked == [1] and "with --gpu 1" in lines["gpu check"]["detail"]
    assert gpu.chosen(None, 1) == "triton" and gpu.chosen(None, 0) is None
    assert "not checked yet" in lines["gpu 0"]["detail"] and lines["gpu 0"]["fix"] == "v4 doctor --gpu 0"
    passes["answer"] = "2 of 3 codes differ"
    lines, code = doctor()
    assert code == 1 and asked == [1, 0] and "CPU's bits" in lines["gpu 1"]["detail"]
    monkeypatch.setenv("V4_GPU", "1")
    lines, _ = doctor()
    assert asked == [1, 0, 1] and "2 of 3 codes differ" in lines["gpu 0"]["detail"]


def test_a_number_that_no_card_has_is_one_line(doctor, monkeypatch):
    monkeypatch.setattr(gpu, "lack", lambda number=None: Lack("there is no GPU 7", "--gpu 0"))
    with pytest.raises(UsageError, match="no GPU 7"):
        doctor("--gpu", "7")


def test_a_card_that_does_not_start_fails(doctor, monkeypatch):
    def broken(number=0):
        raise UsageError("GPU 0 cannot be used: it does not start", "v4 doctor")

    monkeypatch.setattr(gpu, "device", broken)
    lines, code = doctor()
    assert code == 1 and "does not start" in lines["gpu check"]["detail"]


def test_who_asks_for_a_gpu_that_cannot_be_used_gets_one_line_and_the_next_command(tmp_path):
    done = v4(
        "run", "-m", "nano", "-n", "4", "--backend", "triton", "hello", env={"V4_HOME": str(tmp_path), "PATH": ""}
    )
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 2
    assert done.stderr.startswith("v4: --backend triton: no GPU is here") and "hint: " in done.stderr


def test_who_does_not_ask_goes_on_with_the_cpu(tmp_path):
    env = {"V4_HOME": str(tmp_path), "PATH": "", "V4_VRAM": "20G"}
    done = v4("run", "-m", "nano", "-n", "4", "--temp", "0", "hello", env=env)
    assert done.returncode in (0, 6) and done.stdout
    assert "V4_VRAM has no effect, the model is not on a GPU" in done.stderr
    quiet = v4("run", "-m", "nano", "-n", "4", "--temp", "0", "hello", env=env | {"V4_VRAM": ""})
    assert "GPU" not in quiet.stderr and quiet.stdout == done.stdout


def test_who_has_no_triton_is_told_what_is_missing_to_measure_a_gpu(tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('no triton')")
    env = {"V4_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(tmp_path)}
    done = v4("bench", "kernels", "--backend", "triton", env=env)
    assert done.returncode == 2 and done.stdout == "" and "no card to measure: no GPU is here" in done.stderr


def test_a_card_that_was_passed_over_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.setattr(gpu, "chosen", lambda backend, number=None: "triton")
    monkeypatch.setattr(hardware, "gpus", lambda: [CARD])

    def broken(number=0):
        raise UsageError("GPU 0 cannot be used: it does not start", "v4 doctor")

    monkeypatch.setattr(gpu, "device", broken)
    app(["run", "-m", "nano", "-n", "4", "--temp", "0", "--vram", "20G", "--no-cache", "hi"], standalone_mode=False)
    told = capsys.readouterr()
    assert told.out and "GPU 0 cannot be used: it does not start; the CPU computes" in told.err
    assert "has no effect" not in told.err


def test_a_cache_in_a_file_is_for_the_cpu_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.setattr(gpu, "chosen", lambda backend, number=None: backend or "triton")
    monkeypatch.setattr(gpu, "device", lambda number=0: pytest.fail("the GPU was tried"))
    monkeypatch.setattr(hardware, "gpus", lambda: [CARD])
    app(["run", "-m", "nano", "-n", "4", "--temp", "0", "--kv-dir", str(tmp_path), "hi"], standalone_mode=False)
    told = capsys.readouterr()
    assert told.out and "--kv-dir is the CPU's, which computes" in told.err and "--kv-host" in told.err


def test_a_cache_in_a_file_and_a_gpu_exclude_each_other_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Chat, "open", lambda *options: pytest.fail("the model was opened"))
    asked = ["run", "-m", "nano", "--backend", "triton", "--kv-dir", str(tmp_path), "hi"]
    with pytest.raises(UsageError, match=r"--kv-dir is not for --backend triton") as told:
        app(asked, standalone_mode=False)
    assert "--kv-host" in told.value.hint


def test_what_a_gpu_does_not_take_is_named(tmp_path):
    asked = "run", "-m", "nano", "--backend", "triton", "--numerics", "exact", "hi"
    done = v4(*asked, env={"V4_HOME": str(tmp_path), "PATH": ""})
    assert done.returncode == 2 and "--numerics is not for --backend triton" in done.stderr
