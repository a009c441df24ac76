"""What people type first, in a real terminal: files and what they cost, formats, templates, going on, finding again,
bars. In three sizes, in colours that can be read on dark and light backgrounds, without any, and on dumb terminals."""

import re
import sys
from pathlib import Path

import pytest
from terminal import Terminal
from test_looks import BACKGROUNDS, LEAST_CONTRAST, contrast, idle, place  # noqa: F401  a fixture

from v4cli.paths import NANO

sys.path.append(str(Path(__file__).parent.parent / "pull"))

V4 = (sys.executable, "-m", "v4cli")
TELLING = (sys.executable, str(Path(__file__).with_name("quick_to_tell.py")))
SLOW = pytest.mark.slow
SIZES = [(40, 15), pytest.param(80, 24, marks=SLOW), pytest.param(200, 50, marks=SLOW)]
NO_COLOUR = [False, pytest.param(True, marks=SLOW)]


def said(terminal: Terminal) -> str:
    """All that was shown, however it was broken into lines."""
    return " ".join(terminal.text.split())


def seen(terminal: Terminal) -> int:
    """Checks every cell on both backgrounds; how many have a colour of ours. Faint text has the terminal's own."""
    cells = [terminal.screen.buffer[y][x] for y in range(terminal.screen.lines) for x in range(terminal.screen.columns)]
    coloured = [cell for cell in cells if cell.data.strip() and cell.fg not in ("default", "brightblack")]
    for cell in coloured:
        assert cell.bg == "default" and all(contrast(cell.fg, one) >= LEAST_CONTRAST for one in BACKGROUNDS), cell
    return len(coloured)


@pytest.fixture
def there(place) -> dict:  # noqa: F811
    """Files to talk about, and a machine that once was slow: what a file costs is worth a question."""
    state = Path(place["env"]["V4_HOME"]) / "state"
    (Path(place["cwd"]) / "a.txt").write_text("The word is tulip.\n")
    state.mkdir(parents=True)
    pace = f'{{"multiply-adds/s of prefills, {NANO} by v4kernels.cpu.ops": 1000000.0}}'
    (state / "figures.json").write_text(pace)
    return place


@pytest.mark.parametrize("without_colour", NO_COLOUR)
@pytest.mark.parametrize("columns, rows", SIZES)
def test_the_chat_tells_what_files_cost_and_what_is_in_force(there, columns, rows, without_colour):
    there["env"]["NO_COLOR"] = "1" if without_colour else None
    with Terminal(columns=columns, rows=rows, **there) as terminal:
        terminal.wait(idle)
        terminal.line("/temp 0")
        terminal.line("/set max_tokens 60")
        terminal.line("what is in @docs/plan.txt ?")
        terminal.wait(lambda t: "y sends it, Up brings it back" in said(t))
        assert re.search(r"adds [\d,]+ tokens?, about \d+ (s|min|h)", said(terminal))
        n_coloured = seen(terminal)
        terminal.line("y")
        terminal.wait(lambda t: any(re.match(r"nano · [1-9]\d* of 1M", row) for row in t.rows))
        for line, shows in (
            ("/format name, ok bool", "answers are JSON by"), ("/format text", "answers are text"),
            ("/set loops keep", "loops: keep"), ("/set", "min_p: 0.0"), ("/context", " free"),
            ("/logs", " messages what is in"),
        ):  # fmt: skip
            terminal.line(line)
            terminal.wait(lambda t, line=line, shows=shows: shows in said(t).rpartition(f"› {line}")[2])
            n_coloured += seen(terminal)
        *parts, whole, _ = (int(n.replace(",", "")) for n in re.findall(r"^ *([\d,]+)  \w", terminal.text, re.M))
        assert sum(parts) == whole > 0 and "temp: 0.0" in said(terminal)
        assert (n_coloured == 0) == without_colour
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.slow
def test_the_same_where_nothing_moves(there):
    there["env"]["TERM"] = "dumb"
    with Terminal(prompt="nano is ready", **there) as terminal:
        terminal.line("/temp 0")
        terminal.line("/set max_tokens 60")
        terminal.line("what is in @docs/plan.txt ?")
        terminal.wait(lambda t: "y sends it, Up brings it back" in said(t))
        terminal.line("y")
        terminal.wait("(answer)")
        for line, shows in (("/format text", "answers are text"), ("/set", "loops: stop"), ("/context", " free")):
            terminal.line(line)
            terminal.wait(lambda t, shows=shows: shows in said(t))
        terminal.line("/exit")
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw


@pytest.mark.parametrize("dumb", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("without_colour", NO_COLOUR)
@pytest.mark.parametrize("columns, rows", SIZES)
def test_files_going_on_templates_and_finding_again(there, columns, rows, without_colour, dumb):
    templates = Path(there["env"]["V4_HOME"]) / "templates"
    templates.mkdir()
    (templates / "short.md").write_text("Say it in one word: $input\n")
    there["env"] |= {"NO_COLOR": "1" if without_colour else None} | ({"TERM": "dumb"} if dumb else {})

    def v4(*args: str) -> str:
        terminal = Terminal(*args, columns=columns, rows=rows, program=V4, prompt="", **there)
        assert terminal.end() == 0, terminal.text
        assert not (seen(terminal) if not without_colour and not dumb else terminal.raw.count(b"\x1b["))
        return said(terminal)

    said_of_files = v4("run", "-f", "a.txt", "-f", "docs/plan.txt", "-n", "4", "what is this?")
    assert re.search(r"2 files; [\d,]+ tokens, about", said_of_files)
    v4("run", "-c", "-t", "short", "-n", "4", "and now?")
    listed = v4("logs")
    assert "what is this? @a.txt" in listed and "@docs/plan.txt" in listed and " 4 " in listed
    assert "Say it in one word: and now?" in v4("logs", "show") and "tulip" in v4("logs", "search", "tulip")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_bar_of_a_bench_fits_and_tells_how_far_it_is(there, columns):
    args = ("bench", "-m", "nano", "--ctx", "1300", "--frontiers", "100,1300", "-n", "1")
    terminal = Terminal(*args, columns=columns, rows=24, program=TELLING, prompt="", **there)
    assert terminal.end() == 0, terminal.text
    told = re.sub(r"\s", "", terminal.text)
    assert "takesabout" in told and "tokens/sdecoded" in told
    bars = changing(terminal, "to 1,300 tokens (2 of 2)")
    assert any(re.search(r"\b\d\d%.* · .* left$", bar) for bar in bars), bars
    assert all(len(bar) < columns for bar in bars)


@pytest.mark.parametrize("columns", [40, pytest.param(80, marks=SLOW), pytest.param(200, marks=SLOW)])
def test_the_bar_of_a_pull_fits_and_tells_how_far_it_is(there, tmp_path, columns):
    from hub_server import serving
    from pulling import REPO, by_block

    from v4cli.bench.synthetic import write_synthetic
    from v4cli.model.config import V4Config

    source = by_block(write_synthetic(tmp_path / "source", V4Config.load(NANO / "config.json")))
    with serving() as hub:
        hub.add(REPO, source)
        there["env"] |= hub.environment(tmp_path / "hub")
        args = ("pull", REPO, "--name", "it")
        terminal = Terminal(*args, columns=columns, rows=24, program=TELLING, prompt="", **there)
        assert terminal.end() == 0, terminal.text
    bars = [line for line in changing(terminal, "it ") if "%" in line]
    assert any(re.search(r"\b\d+% · part \d+ of \d+", bar) for bar in bars), bars
    assert all(len(bar) < columns for bar in bars), bars
    assert seen(terminal) == 0


def changing(terminal: Terminal, begin: str) -> list[str]:
    """The lines that took each other's place, those that begin so."""
    pieces = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.raw.decode()))
    return [piece for piece in pieces if piece.startswith(begin)]
