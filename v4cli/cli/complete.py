"""What Tab completes on the command line: names and IDs that are there. Called by the shell at every Tab, so that all
errors are silent and nothing is loaded."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import islice

MOST = 30  # conversations, those used last: each has to be read
Found = list[str] | list[tuple[str, str]]


def _quietly(find: Callable[[], Iterator[str | tuple[str, str]]]) -> Callable[[str], Found]:
    """What begins as typed, of what `find` gives: words, with their meaning."""

    @wraps(find)
    def complete(incomplete: str) -> Found:
        try:
            return [one for one in find() if (one if isinstance(one, str) else one[0]).startswith(incomplete)]
        except Exception:
            return []

    complete.__annotations__ = {"incomplete": str}
    del complete.__wrapped__
    return complete


def words(choices: Sequence[str]) -> Callable[[str], Found]:
    """Of an option with these values."""
    return _quietly(lambda: iter(choices))


@_quietly
def models() -> Iterator[str]:
    from v4cli import paths
    from v4cli.store import library

    yield "nano"
    yield from (entry.name for entry in library.entries(paths.models_dir()))


@_quietly
def models_and_releases() -> Iterator[str]:
    from v4cli import paths
    from v4cli.model.known import MODELS
    from v4cli.store import library

    yield from dict.fromkeys(["nano", *MODELS, *(entry.name for entry in library.entries(paths.models_dir()))])


@_quietly
def conversations() -> Iterator[tuple[str, str]]:
    from v4cli import paths
    from v4cli.agent.transcript import transcripts

    yield from islice(((kept.id, kept.about["title"]) for kept in transcripts(paths.chats_dir())), MOST)


@_quietly
def contexts() -> Iterator[tuple[str, str]]:
    from v4cli.cli.sessions import ID_LENGTH, all_contexts

    yield from ((listed.snapshot.id[:ID_LENGTH], listed.title) for listed in all_contexts())


@_quietly
def templates() -> Iterator[str]:
    from v4cli.cli.templates import names

    yield from names()


@_quietly
def settings() -> Iterator[tuple[str, str]]:
    from v4cli.settings import KEYS

    yield from ((key, entry.help) for key, entry in KEYS.items())
