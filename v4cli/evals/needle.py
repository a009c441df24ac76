"""Part `needle`: does the model find, follow, count and copy what stands in a long context?"""

from functools import cache, partial

from v4cli.evals.items import Item, Subject
from v4cli.evals.needles import Needle

SHORT = 3  # questions about a context where there is little time


def items(subject: Subject, lengths: tuple[int, ...], n_contexts: int, all_kinds: bool) -> list[Item]:
    """Questions about contexts of these lengths; the first few only, or all."""
    made = []
    for n_tokens in lengths:
        for number in range(n_contexts):
            # One context is read for all its questions, and kept no longer than for them.
            asked = cache(partial(subject.material.haystack, subject.seed, number, n_tokens))
            n_questions = subject.material.n_questions if all_kinds else SHORT
            made += [
                Item(
                    ("needle",),
                    f"{n_tokens}.{number}.{i}",
                    n_tokens if i == 0 else 100,
                    partial(_ask, subject, asked, i, n_tokens),
                )
                for i in range(n_questions)
            ]
    return made


def _ask(subject: Subject, asked, i: int, n_tokens: int) -> dict[str, dict]:
    needle: Needle = asked()[i]
    said = subject.reply(needle.messages, needle.max_tokens).get("content", "")
    read = len(subject.chat.prompt)
    return {
        "needle": {
            "kind": needle.kind, "length": n_tokens, "depth": needle.depth, "read": read, "right": needle.right(said)
        }
    }  # fmt: skip
