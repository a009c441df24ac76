"""The first screen of a conversation: what answers, where and how fast, what it may do, and what to type."""

import os
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from v4cli import hardware, paths
from v4cli.cli import output
from v4cli.cli.models import count
from v4cli.cli.plan import RAM, SSD, room
from v4cli.cli.plan_card import Wanted, figure
from v4cli.cli.sessions import is_remote, speed_of
from v4cli.engine.sampler import Sampling
from v4cli.errors import V4Error
from v4cli.model.known import known_config
from v4cli.options import Mode
from v4cli.plan import cost, measured, memory
from v4cli.plan.budget import CONTEXT
from v4cli.plan.machines import outlook
from v4cli.plan.placement import shortage
from v4cli.store.recipe import RECIPES

STEPS = 4  # that are timed where nothing is known
REAL = "flash"  # what people come for
NANO = "the toy that comes with v4, which shows how everything works and knows little"
ALLOWED = {
    Mode.ASK: "reads without asking, asks before it changes a file or runs a command",
    Mode.EDITS: "reads and changes files without asking, asks before it runs a command",
    Mode.PLAN: "reads, changes nothing",
    Mode.ALL: "does everything without asking",
}


def greeting(dialogue, alone: bool) -> list[tuple[str, str]]:
    """Labels and texts; `alone`: the command was `v4` with nothing behind it, so say what else it can do."""
    engine, is_nano = dialogue.chat.engine, dialogue.model == "nano"
    parameters = f"{count(cost.parameters(engine.config).total)} parameters"
    rows = [("", f"{dialogue.model}, {parameters}" + (f": {NANO}" if is_nano else ""))]
    rows.append(("runs on", f"{_where(dialogue)}{_speed(engine)}"))
    rows.append(("context", f"{engine.config.max_position_embeddings:,} tokens; {_cached(dialogue.chat.session)}"))
    tools = dialogue.conversation.agent.toolbox.tools
    may = f"{ALLOWED[dialogue.approvals.mode]} (/approve)" if tools else "no tools (--tools all)"
    rows.append(("folder", f"{_short(dialogue.setup.folder)}; {may}"))
    if is_nano:
        rows.append((f"{REAL} here", _real()))
    rows.append(("talk" if alone else "try", f"{_example(dialogue, is_nano)} (/help tells the rest)"))
    if alone:
        rows.append(("ask once", 'v4 run "QUESTION", for scripts and pipes'))
        rows.append(("more", f"v4 pull {REAL} brings the real model; v4 serve, v4 launch: for programs; v4 --help"))
    return rows


def _where(dialogue) -> str:
    """What computes, and where the weights are."""
    engine = dialogue.chat.engine
    if is_remote(engine):
        return f"the server at {engine.client.url}"
    if engine.placed:
        name = hardware.gpus()[dialogue.setup.told.loading.gpu or 0].name
        slots = engine.placed.slots
        share = slots.policy.n_resident / slots.table.size if slots else 1.0
        return f"{name}, {share:.0%} of the experts in its memory" + (", some on the SSD" if engine.stream else "")
    if engine.model.ops.name != "cpu":
        return "this CPU, with plain torch"
    from v4kernels import native

    n = native.threads()
    cpu = f"this CPU ({native.isa()}, {n} thread{'s' * (n != 1)})"
    if engine.stream is None:
        return f"{cpu}, all of it in memory"
    share = engine.stream.policy.places / len(engine.stream.reader.files)
    return f"{cpu}, room for {share:.0%} of the experts in memory, others read from the SSD"


def _speed(engine) -> str:
    """How fast it should be: as it was, else, where that is quick, as it is."""
    known = measured.figure(paths.figures_file(), speed_of(engine))
    if known is None and not is_remote(engine) and engine.counts() is None:
        with suppress(V4Error):
            known = _timed(engine)
    return f"; about {figure(known)} tokens/s" if known else "; how fast, the first answer shows"


def _timed(engine) -> float:
    """Tokens/s of a few steps. ResourceError, ModelError."""
    session, at = engine.session(), []
    session.sync([0])
    for _ in session.generate(Sampling(), STEPS + 1):
        at.append(time.perf_counter())
    return 1 / median(after - before for before, after in pairwise(at))


def _cached(session) -> str:
    """What of the work of earlier conversations is there."""
    if session.prefixes is None:
        return "nothing is cached"
    files = [path for path in session.prefixes.folder.glob("*") if path.is_file()]
    n_bytes = sum(path.stat().st_size for path in files)
    return f"{output.size(n_bytes)} of earlier ones cached" if n_bytes else "nothing is cached yet"


def _real() -> str:
    """What v4 plan would say of the real model here."""
    config = known_config(REAL)
    bare = cost.needs_of_release(config, RECIPES["native"].rules)
    needs = cost.at_context(bare, config, CONTEXT, 1)
    card, vram = Wanted(None, None, None, False).card()
    memory_here = room(config, CONTEXT, card, vram, memory.card_chunk(config, vram))
    weights = sum(use.held for use in bare.dense) + bare.head + bare.embed.held + bare.n_experts * bare.expert
    if (missing := shortage(needs, memory_here)) > 0:
        return f"{output.size(missing)} of memory are missing (v4 plan {REAL})"
    ram, ssd = (measured.figure(paths.figures_file(), what) for what in (RAM, SSD))
    found = outlook(needs, config, CONTEXT, memory_here, card)
    said = f"{output.size(weights)}, {found.plan.resident:.0%} of its experts in memory"
    if not (ram and ssd):
        return f"{said}; v4 plan {REAL} measures how fast"
    found = outlook(needs, config, CONTEXT, replace(memory_here, ram_speed=ram, ssd_speed=ssd), card)
    return f"{said}, about {figure(1 / (found.expected or found.pessimistic))} tokens/s (v4 plan {REAL})"


def _example(dialogue, is_nano: bool) -> str:
    """Something that can be typed at once."""
    if is_nano:
        return "what is 17*23?"
    if (dialogue.setup.folder / "README.md").is_file():
        return "@README.md what is this about?"
    return "explain in three sentences how you work"


def _short(folder: Path) -> str:
    """A folder as the user would write it."""
    home = os.path.expanduser("~")
    return "~" + str(folder)[len(home) :] if folder.is_relative_to(home) else str(folder)
