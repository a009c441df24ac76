"""Apple's chips are known by their bandwidth, wherever a model is looked at or planned."""

import json
import platform
import subprocess
import sys

import pytest

from v4cli import hardware, system
from v4cli.cli import doctor
from v4cli.cli.app import app
from v4cli.plan import apple
from v4cli.plan.machines import APPLE, MACHINES


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """This machine's processor is one of Apple's; of memory and disk nothing is measured."""
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.setattr(hardware, "processor", lambda: "Apple M4 Max")
    monkeypatch.setattr(hardware, "ram_speed", lambda: 300e9)
    monkeypatch.setattr(hardware, "disk_speed", lambda *_: 5e9)


def said(capsys, *arguments: str) -> str:
    app(list(arguments), standalone_mode=False)
    return capsys.readouterr().out


def test_the_chip_is_told_with_what_its_maker_says(mac, capsys):
    assert "Apple M4 Max, memory of up to 546 GB/s by its maker" in said(capsys, "show", "nano")
    assert "Apple M4 Max: memory of up to 546 GB/s by its maker" in said(capsys, "plan", "nano")
    assert json.loads(said(capsys, "plan", "nano", "--json"))["published_bytes_per_second"] == 546e9
    assert "Apple M4 Max, memory of up to 546 GB/s by its maker, " in doctor._cpu()[2]


def test_of_other_processors_nothing_is_known(mac, capsys, monkeypatch):
    for name in ("AMD EPYC", "Apple M4 Max Plus", "M4 Max", "Apple", ""):
        assert apple.bandwidth(name) is None
    monkeypatch.setattr(hardware, "processor", lambda: "AMD EPYC")
    assert "by its maker" not in said(capsys, "show", "nano") + said(capsys, "plan", "nano")


def test_every_family_has_its_rows():
    assert {name.split()[0] for name in apple.CHIPS} == {"M1", "M2", "M3", "M4"}
    of_apple = {name: one for one in MACHINES for name in APPLE if one.name == f"{one.ram} GB {name}"}
    assert all((one.ram, one.ram_speed) == apple.CHIPS[chip] for chip, one in of_apple.items())
    assert set(of_apple) == set(APPLE)


def test_macos_is_asked_and_may_be_silent(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "Apple M1\n", ""))
    assert system.processor() == "Apple M1"

    def absent(*_, **__):
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(subprocess, "run", absent)
    assert system.processor() == (platform.processor() or platform.machine())
