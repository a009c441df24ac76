"""Lines about long jobs: what fits, what is left out, how long it takes, and what a wait waits for."""

import time

import pytest

from v4cli.cli import progress
from v4cli.cli.output import table_lines
from v4cli.cli.progress import Meter, Prefill, fitting, waiting
from v4cli.cli.pull import _Progress
from v4cli.model.known import known_config
from v4cli.plan import flops
from v4cli.pull.sizes import Plan
from v4cli.words import span

PARTS = ["part 3 of 46", "34.2 MiB/s", "18.4 GiB of 154.9 GiB"]


@pytest.mark.parametrize(
    "seconds, said",
    [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (2820, "47 min"), (4320, "1 h 12 min"), (270_000, "3 d 3 h")],
)
def test_times_are_short(seconds, said):
    assert span(seconds) == said


def test_the_time_left_is_the_last_to_be_dropped():
    whole = fitting("flash", 0.12, PARTS, 4320, 200)
    assert whole.startswith("flash ██") and whole.endswith(
        "12% · part 3 of 46 · 34.2 MiB/s · 18.4 GiB of 154.9 GiB · 1 h 12 min left"
    )
    assert "█" not in fitting("flash", 0.12, PARTS, 4320, None) and whole.count(" · ") == 4
    for width in range(4, 120):
        line = fitting("flash", 0.12, PARTS, 4320, width)
        assert len(line) <= width
        said = [part in line for part in ("flash", "12%", "1 h 12 min left", *PARTS)]
        assert width < 9 or said == sorted(said, reverse=True), "what is more important is there first"
    assert fitting("flash", 0.12, PARTS, 4320, 28) == "flash 12% · 1 h 12 min left"


def test_the_time_left_of_a_prefill_grows_with_the_context():
    config, half = known_config("flash"), 500_000
    left = flops.prefill_s_left(config, 0, half, 2 * half, 60)
    work = flops.prefill_macs(config, half, 2 * half) / flops.prefill_macs(config, 0, half)
    assert left == pytest.approx(60 * work) and work > 1.2, "a straight line would say 60 s"
    assert flops.prefill_s_left(config, 0, 0, half, 1.0) is None
    steps = sum(flops.token_macs(config, n) for n in range(0, half, 50)) * 50
    assert flops.prefill_macs(config, 0, half) == pytest.approx(steps, rel=0.01)


def test_a_prefill_says_how_far_it_is_where_lines_do_not_change(monkeypatch, capsys):
    clock = iter([0.0, 0.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    tell = Prefill(known_config("flash"))
    for done in (0, 100, 200, 1000):
        tell(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "10%" in lines[0] and "100 of 1,000 tokens" in lines[0] and lines[0].endswith(" left")
    assert "100%" in lines[1] and "0 s left" in lines[1]


def test_a_wait_says_what_it_waits_for_once_it_is_long(monkeypatch, capsys):
    with waiting("loading"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)
    with waiting("loading"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "v4: loading …\n"


def test_rates_are_those_of_the_last_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = Meter(1000)
    assert meter.left is None
    for second in range(1, 101):
        now[0] = second
        meter.add(1 if second <= 60 else 9)
    assert meter.rate == pytest.approx(9) and meter.left == pytest.approx((1000 - 60 - 360) / 9)


@pytest.mark.parametrize("most", [30, 40, 60, 80, 200])
def test_tables_fit_the_terminal_and_say_everything(most):
    rows = [
        ("NAME", "SIZE", "WHAT IT IS"),
        ("flash", "154.9 GiB", "a model that does not fit " * 3),
        ("nano", "", "toy"),
    ]
    lines = table_lines(rows, most)
    assert max(map(len, (line.rstrip() for line in lines))) <= most
    said = " ".join(" ".join(lines).split())
    assert all(word in said for row in rows[1:] for cell in row for word in cell.split())
    assert table_lines(rows, None)[1].split("  ")[0] == "flash" and len(table_lines(rows, None)) == 3
    many = [tuple("ABCDEFGH"), tuple(f"value-{i}-{i}" for i in range(8))]
    assert table_lines(many, 40)[:2] == ["value-0-0", "  B: value-1-1"]


@pytest.mark.parametrize("fetched", [0, 1000])
def test_what_lies_on_this_disk_is_not_waited_for(fetched):
    plan = Plan("repo", "", "q4", 4.25, 2, 1, 1000, fetched, 1000, 0, 1000, 10**9)
    with _Progress("m") as told:
        told.plan(plan)
        told.start("shard", 1000, True)
        told.advance("shard", 1000)
        line = told._whole(None)
    assert line.startswith("m 50%" if fetched else "m 0%") and ("read" in line) == bool(fetched)
