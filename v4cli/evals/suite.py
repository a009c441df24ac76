"""Which items are measured, how many there are, and doing them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from v4cli.errors import Interrupted, UsageError
from v4cli.evals import code, needle, state, tools, windows
from v4cli.evals.items import Item, Subject
from v4cli.evals.journal import Journal
from v4cli.evals.teacher import Teacher
from v4cli.evals.windows import Window

ANSWER = 256  # tokens
PARTS = ("kld", "ppl", "state", "tools", "needle", "code")


@dataclass(frozen=True)
class Sizes:
    """How much of each part. `texts`: of each text the lengths before which positions count, `scored` of them each."""

    name: str
    texts: tuple[tuple[int, ...], ...]
    scored: int
    state: int  # tokens
    cases: int  # of each kind
    long: int  # tokens of a result that is long
    contexts: tuple[int, ...]  # lengths in tokens
    programs: int
    all_kinds: bool  # every question about a context, and every set of programs

    def up_to(self, longest: int) -> "Sizes":
        """With lengths up to this one: of those beyond the usual, each four times the one before."""
        further, contexts = max(self.contexts) * 4, [length for length in self.contexts if length <= longest]
        while further <= longest:
            contexts.append(further)
            further *= 4
        return replace(self, texts=_up_to(longest, self.texts), contexts=tuple(contexts))

    def within(self, context: int) -> "Sizes":
        """What a model with such a context has room for, answers included."""
        contexts = tuple(length for length in self.contexts if length + ANSWER <= context)
        return replace(self, texts=_up_to(context, self.texts), contexts=contexts)

    def fits(self, part: str, context: int) -> bool:
        """Whether there is anything of a part that such a context has room for."""
        if part in ("kld", "ppl", "needle"):
            return bool(self.contexts if part == "needle" else self.texts)
        least = {"state": self.state, "tools": tools.ROOM + self.long, "code": code.ROOM}
        return least[part] <= context

    @property
    def lengths(self) -> set[int]:
        return {*self.contexts, *(end for ends in self.texts for end in ends)}

    @property
    def windows(self) -> list[Window]:
        return Window.all(self.texts, self.scored)


FULL = Sizes(
    "full", ((512, 4096, 16_384, 65_536), (512, 4096, 16_384), (512, 4096), (512, 4096), *[(512,)] * 4), 512,
    320, 12, 4096, (4096, 16_384, 65_536), 20, True,
)  # fmt: skip
# Within 30 minutes at 5 tokens/s: 9,000 tokens, prompts and all, the reference's and the floor's texts included.
QUICK = Sizes("quick", ((512,),), 512, 136, 1, 256, (512,), 1, False)


def _up_to(longest: int, texts: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Texts without the lengths beyond."""
    return tuple(filter(None, (tuple(end for end in ends if end <= longest) for ends in texts)))


def chosen(only: str | None) -> tuple[str, ...]:
    """The parts of `--only`. UsageError for one that is not there."""
    if only is None:
        return PARTS
    names = [name.strip() for name in only.split(",")]
    unknown = next((name for name in names if name not in PARTS), None)
    if unknown is not None:
        raise UsageError(f"there is no part {unknown[:40]!r} of v4 eval", f"parts: {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in names)


def items(subject: Subject, sizes: Sizes, parts: Sequence[str], teacher: Teacher | None) -> list[Item]:
    """Everything there is to do, in order."""
    made = windows.items(subject, sizes.windows, teacher, parts)
    if "state" in parts:
        made += state.items(subject, sizes.state)
    if "tools" in parts:
        made += tools.items(subject, sizes.cases, sizes.long)
    if "needle" in parts:
        made += needle.items(subject, sizes.contexts, 1, sizes.all_kinds)
    if "code" in parts:
        made += code.items(subject, sizes.programs, sizes.all_kinds)
    return made


def undone(made: Iterable[Item], journal: Journal) -> list[Item]:
    """Those of which a result is missing."""
    return [item for item in made if any((part, item.name) not in journal.results for part in item.parts)]


def do(todo: Sequence[Item], journal: Journal, cancelled: Callable[[], bool], told: Callable[[Item], None]) -> None:
    """Do them and note what came out; `told` hears of each before. Interrupted: what is done stays."""
    for item in todo:
        if cancelled():
            raise Interrupted("interrupted")
        told(item)
        for part, result in item.run().items():
            if (part, item.name) not in journal.results:
                journal.add(part, item.name, result)
