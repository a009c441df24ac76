"""`v4 plan`: where every byte of a model would live on this machine, what a token would cost, and on which other
machines it would fit."""

from dataclasses import dataclass, replace
from pathlib import Path

from v4cli import hardware, paths
from v4cli.cli import output, plan_card
from v4cli.cli.models import AS_OFFICIAL, NOT_HERE, OFFICIAL, Subject, in_words
from v4cli.cli.progress import waiting
from v4cli.errors import ResourceError, UsageError
from v4cli.model.config import V4Config
from v4cli.plan import apple, cost, measured
from v4cli.plan import memory as memory_of
from v4cli.plan.budget import CONTEXT, SHARE, longest_context
from v4cli.plan.cards import Card
from v4cli.plan.machines import (
    DESKTOP,
    HOST,
    MACHINES,
    SERVER,
    SSD_SPEED,
    SSD_SPEEDS,
    WORKSTATION,
    Machine,
    Outlook,
    outlook,
    plans,
)  # fmt: skip
from v4cli.plan.placement import Budget, Needs, shortage
from v4cli.plan.recipes import offers
from v4cli.store import price
from v4cli.store.library import COMPLETE
from v4cli.store.recipe import RECIPES, Named, named

ASSUMPTION = (
    "experts of a layer are used equally often, so the share in memory is the share of reads it serves (real hit rates "
    "are higher); bytes only, computing is not counted"
)
HEADER = (
    f"common machines, {SHARE:.0%} of their memory used; RAM {DESKTOP / 1e9:.0f} GB/s (two channels of DDR5), beside "
    f"large GPUs {HOST / 1e9:.0f}, workstation {WORKSTATION / 1e9:.0f}, server {SERVER / 1e9:.0f}; with a GPU "
    "predicted (from a poor cache of experts to a good one)"
)
RAM, SSD = "bytes/s of RAM", "bytes/s of the SSD"  # names of figures
SMALLEST = "q4"  # the recipe with the fewest bytes


@dataclass(frozen=True)
class Request:
    """What is planned."""

    subject: Subject
    recipe: Named
    n_tokens: int  # of each session
    needs: Needs
    file_bytes: int  # all of the weights on disk


def plan_model(
    model: str,
    ram: str | None,
    wanted: plan_card.Wanted,
    ctx: str | None,
    sessions: int,
    quant: str | None,
    as_json: bool,
) -> None:
    """Print the plan and the fit table. ResourceError (exit 4) if this machine cannot hold the least there must be."""
    card, vram = wanted.card()
    if card is None and (option := wanted.ignored()):
        output.note(f"v4: {option} has no effect without a GPU (--vram 24G plans for one)", dim=True)
    config = Subject.find(model).config
    chunk = wanted.chunk or memory_of.card_chunk(config, vram)
    n_tokens = None if ctx is None else output.parse_tokens(ctx, "--ctx")
    with waiting(f"adding up {model}"):
        request = _request(model, n_tokens, sessions, quant)
    memory = room(config, request.n_tokens, card, vram, chunk)
    memory = replace(memory, kv_host=wanted.kv_host, ram=memory.ram if ram is None else output.ram_budget(ram))
    if shortage(request.needs, memory) > 0:
        raise _does_not_fit(request, memory)
    folder = request.subject.folder or paths.models_dir() / model
    with waiting("measuring memory and disk"):
        budget, assumed = _with_speeds(memory, card, folder)
    about = _about(request, outlook(request.needs, config, request.n_tokens, budget, card), assumed, folder)
    about["recipes"] = _recipes(request, budget, card)
    about["card"] = plan_card.about(request.needs, config, budget, card, chunk, assumed) if card else None
    if as_json:
        output.json_page(about)
    else:
        _print(about)


def room(config: V4Config, n_tokens: int, card: Card | None, vram: int, chunk: int) -> Budget:
    """What a model may use of this machine, at speeds that are assumed."""
    return Budget(
        ram=int(SHARE * hardware.usable_ram()), vram=vram, ram_speed=DESKTOP, vram_speed=card.read if card else 1.0,
        ssd_speed=SSD_SPEED, work=memory_of.card_work_bytes(config, chunk, n_tokens),
    )  # fmt: skip


def _request(model: str, n_tokens: int | None, sessions: int, quant: str | None) -> Request:
    subject = Subject.find(model)
    config = subject.config
    if quant == subject.quant or (quant is None and subject.folder):
        recipe, wanted = subject.recipe, None
    else:
        recipe = wanted = AS_OFFICIAL if quant == OFFICIAL else named(quant or "native", (OFFICIAL,))
    longest = config.max_position_embeddings
    n_tokens = min(CONTEXT, longest) if n_tokens is None else n_tokens
    if n_tokens > longest:
        raise UsageError(f"--ctx {n_tokens} is more than the model's {longest}", f"--ctx {longest}")
    bare, file_bytes = subject.needs(wanted)
    return Request(subject, recipe, n_tokens, cost.at_context(bare, config, n_tokens, sessions), file_bytes)


def _with_speeds(memory: Budget, card: Card | None, folder: Path) -> tuple[Budget, list[str]]:
    """The budget with measured speeds, and which speeds had to be assumed."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size) if folder.is_dir() else []
    ssd_speed = hardware.disk_speed(folder, files[-1] if files else None)
    assumed = [] if ssd_speed else ["SSD"]
    if card is None or "read" not in card.measured:
        assumed.append("VRAM")
    found = replace(memory, ram_speed=hardware.ram_speed(), ssd_speed=ssd_speed or SSD_SPEED)
    for what, speed in ((RAM, found.ram_speed), (SSD, ssd_speed or 0.0)):
        measured.note(paths.figures_file(), what, speed)
    return found, assumed


def _does_not_fit(request: Request, memory: Budget) -> ResourceError:
    """The error, with what would fit as its hint."""
    config, needs = request.subject.config, request.needs
    ways, sessions = [], needs.sessions
    longest = longest_context(needs, config, memory)
    if longest:
        ways.append(f"--ctx {longest} fits")
    if request.recipe.name != SMALLEST:
        small = cost.needs_of_release(config, RECIPES[SMALLEST].rules, request.subject.with_mtp)
        small = cost.at_context(small, config, request.n_tokens, sessions)
        if shortage(small, memory) <= 0:
            ways.append(f"--quant {SMALLEST} fits")
        elif not longest and (longest := longest_context(small, config, memory)):
            ways.append(f"--quant {SMALLEST} --ctx {longest} fits")
    if sessions > 1 and shortage(cost.at_context(needs, config, request.n_tokens), memory) <= 0:
        ways.append("fewer --sessions fit")
    least = memory.ram + shortage(needs, memory)
    ways.append(f"{-(-least >> 20)}M of RAM would do")
    return ResourceError(
        f"{request.subject.name} ({request.recipe.name}) with {_contexts(sessions, request.n_tokens)} needs "
        f"{output.size(least)} of RAM, {output.size(memory.ram)} can be used",
        "; ".join(ways),
    )


def _contexts(sessions: int, n_tokens: int) -> str:
    each = f"{n_tokens:,} tokens of context"
    return each if sessions == 1 else f"{sessions} sessions of {each}"


def _about(request: Request, found: Outlook, assumed: list[str], folder: Path) -> dict:
    """The whole page as data; bytes, seconds and bytes per second."""
    subject, plan = request.subject, found.plan
    return {
        "model": subject.name,
        "state": subject.state,
        "quant": request.recipe.name,
        "quantization": in_words(request.recipe),
        "context_tokens": request.n_tokens,
        "sessions": request.needs.sessions,
        "kv_bytes_per_session": request.needs.kv.held,
        "rewind_points_per_session": plan.points,
        "rewind_point_bytes": request.needs.point,
        "folder": str(folder),
        "processor": (processor := hardware.processor()),
        "published_bytes_per_second": apple.bandwidth(processor),
        "disk_free": hardware.disk_free(folder),
        "disk_problem": hardware.not_writable(folder) if subject.folder is None else None,
        "file_bytes": request.file_bytes,
        "tiers": [
            {
                "tier": tier.name,
                "budget": tier.budget,
                "holds": tier.holds,
                "read_bytes_per_token": {what: round(n) for what, n in tier.reads.items()},
                "bytes_per_second": tier.speed,
                "speed_is_measured": tier.name not in assumed,
                "seconds_per_token": tier.seconds,
            }
            for tier in plan.tiers
        ],
        "resident_experts": plan.resident,
        "seconds_per_token": _seconds(found),
        "assumption": plan_card.ASSUMPTION if plan.on_card else ASSUMPTION,
        "machines": [_machine(request, machine) for machine in MACHINES],
    }


def _recipes(request: Request, budget: Budget, card: Card | None) -> list[dict]:
    """What every recipe would make of the model here."""
    config, n_tokens, rows = request.subject.config, request.n_tokens, []
    figures = price.measured(request.subject.manifest)
    for offer in offers(config, request.subject.with_mtp, n_tokens, request.needs.sessions):
        found = offer.outlook(config, n_tokens, budget, card)
        rows.append(
            {
                "name": offer.recipe.name,
                "about": offer.recipe.about,
                "expert_bits": offer.bits,
                "file_bytes": offer.file_bytes,
                "ram_in_memory": offer.ram,
                "read_bytes_per_token": offer.read_bytes_per_token,
                "resident_experts": found.plan.resident if found else None,
                "seconds_per_token": _seconds(found) if found else None,
                "quality": price.short(figures if offer.recipe.name == request.subject.quant else {}),
            }
        )
    return rows


def _seconds(found: Outlook) -> dict:
    return {"optimistic": found.optimistic, "expected": found.expected, "pessimistic": found.pessimistic}


def _machine(request: Request, machine: Machine) -> dict:
    """One line of the fit table."""
    row = {
        "name": machine.name, "ram": machine.ram << 30, "vram": machine.card.vram if machine.card else 0,
        "ram_bytes_per_second": machine.ram_speed,
    }  # fmt: skip
    found, missing = plans(request.needs, request.subject.config, request.n_tokens, machine)
    if not found:
        return row | {"fits": False, "missing_ram": missing}
    speeds = [{"ssd_bytes_per_second": ssd, "seconds_per_token": _seconds(one)} for ssd, one in found.items()]
    plan = found[SSD_SPEEDS[0]].plan
    return row | {"fits": True, "resident_experts": plan.resident, "slots": plan.slots, "speeds": speeds}


def _print(about: dict) -> None:
    """The page for people: tiers, time, notes, other machines."""
    state = "" if about["state"] == COMPLETE else f" ({about['state']})"
    output.paragraph(
        f"{about['model']}{state}, {about['quantization']}; {_contexts(about['sessions'], about['context_tokens'])}\n"
    )
    rows, held = [("TIER", "MAY USE", "SPEED", "A TOKEN READS", "IN")], []
    for tier in about["tiers"]:
        holds = ", ".join(f"{what} {output.size(n)}" for what, n in tier["holds"].items() if n)
        held += [f"{tier['tier']} holds: {holds}"] if holds else []
        read = sum(tier["read_bytes_per_token"].values())
        speed = f"{output.rate(tier['bytes_per_second'])} {'measured' if tier['speed_is_measured'] else 'assumed'}"
        budget = "" if tier["budget"] is None else output.size(tier["budget"])
        if tier["budget"] != 0:
            rows.append((tier["tier"], budget, speed, output.size(read), f"{tier['seconds_per_token']:.3f} s"))
    output.table(rows)
    if about["published_bytes_per_second"]:
        held.insert(0, f"{about['processor']}: memory of {output.at_most(about['published_bytes_per_second'])}")
    output.paragraph("\n" + "\n".join(held))
    output.paragraph(
        f"a session holds {output.size(about['kv_bytes_per_session'])} of KV and up to "
        f"{about['rewind_points_per_session']} rewind points of at most {output.size(about['rewind_point_bytes'])}"
    )
    seconds = about["seconds_per_token"]
    how = "one tier after the other, to all at once" if seconds["expected"] is None else "predicted"
    output.paragraph(
        f"{_rate(seconds)} ({how}); {about['resident_experts']:.1%} of the experts in memory\n"
        f"assumed: {about['assumption']}"
    )
    if about["card"]:
        plan_card.show(about["card"])
    if about["disk_problem"]:
        output.paragraph(f"no model can be brought to {about['folder']}: {about['disk_problem']}")
    if about["state"] == NOT_HERE and about["disk_free"] < about["file_bytes"]:
        sizes = f"takes {output.size(about['file_bytes'])}, {output.size(about['disk_free'])} are free"
        output.paragraph(f"the disk of {about['folder']} is too small: the model {sizes}")
    output.paragraph("\nrecipes (v4 pull --quant) on this machine; all in memory: with these sessions, without a GPU")
    rows = [("RECIPE", "EXPERT BITS", "ON DISK", "ALL IN MEMORY", "IN MEMORY HERE", "TOKENS/S", "QUALITY")]
    for recipe in about["recipes"]:
        here = ("does not fit", "")
        if recipe["seconds_per_token"]:
            here = f"{recipe['resident_experts']:.0%}", _rate(recipe["seconds_per_token"]).replace(" tokens/s", "")
        sizes = (output.size(recipe[key]) for key in ("file_bytes", "ram_in_memory"))
        rows.append((recipe["name"], f"{recipe['expert_bits']:.3g}", *sizes, *here, recipe["quality"]))
    output.table(rows)
    output.paragraph(f"\n{HEADER}")
    rows = [("MACHINE", "IN MEMORY", *(f"TOKENS/S, SSD {speed / 1e9:.0f} GB/s" for speed in SSD_SPEEDS))]
    for machine in about["machines"]:
        if machine["fits"]:
            rates = (_rate(speed["seconds_per_token"]).replace(" tokens/s", "") for speed in machine["speeds"])
            rows.append((machine["name"], f"{machine['resident_experts']:.0%}", *rates))
        else:
            short = f"too small by {output.size(machine['missing_ram'])}"
            rows.append((machine["name"], short, *("" for _ in SSD_SPEEDS)))
    output.table(rows)


def _rate(seconds: dict) -> str:
    """Tokens per second: as expected, from the pessimistic to the optimistic figure."""
    low, high = (plan_card.figure(1 / seconds[key]) for key in ("pessimistic", "optimistic"))
    if seconds["expected"] is not None and low != high:
        return f"{plan_card.figure(1 / seconds['expected'])} tokens/s ({low} to {high})"
    return f"{low} tokens/s" if low == high else f"{low} to {high} tokens/s"
