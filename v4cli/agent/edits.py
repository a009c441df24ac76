"""Changes of texts: replacing a part whatever its line ends, and what a change looks like."""

import difflib
import io
import re
from collections.abc import Sequence

LINE_END = re.compile(r"\r\n|\r|\n")
MAX_COMPARED = 25_000_000  # pairs of lines; of larger changes the least form is not looked for
CONTEXT = 3  # lines around a change


def replaced(text: str, old: str, new: str) -> str:
    """The text with `new` instead of the only occurrence of `old`. ValueError says why that is not possible.

    Line ends match whatever their kind. What old and new have in common at both ends stays as it is; in between, line
    ends are those of what is replaced, or of what is around. Only if nothing but line ends is to change, they are
    meant literally.
    """
    if not old:
        raise ValueError("the old text is empty; write_file writes whole files")
    if old == new:
        raise ValueError("nothing was changed: the old and the new text are the same")
    plain, plain_old, plain_new = (LINE_END.sub("\n", part) for part in (text, old, new))
    if plain_old == plain_new:
        at = _place(text, old)
        return text[:at] + new + text[at + len(old) :]
    at = _place(plain, plain_old)
    n_head, n_tail = _alike(plain_old, plain_new)
    start, stop = at + n_head, at + len(plain_old) - n_tail
    ends = LINE_END.findall(text)
    first, last = plain.count("\n", 0, start), plain.count("\n", 0, stop)  # line ends before it, and with it
    in_match = ends[plain.count("\n", 0, at) : first]
    other = [*ends[first:last][-1:], *in_match[-1:], *ends[last : last + 1], *ends[:first][-1:], "\n"][0]
    put, *lines = plain_new[n_head : len(plain_new) - n_tail].split("\n")
    its = ends[first:last] + [other] * len(lines)
    put += "".join(end + line for end, line in zip(its, lines))
    return text[: start + _more(ends[:first])] + put + text[stop + _more(ends[:last]) :]


def ended_alike(new: str, old: str) -> str:
    """The new text of a file, with the line ends of Windows where all of the old one are such and no new one is."""
    ends = set(LINE_END.findall(old))
    return new.replace("\n", "\r\n") if ends == {"\r\n"} and "\r" not in new else new


def _place(text: str, part: str) -> int:
    """Where the part is in the text, which must be clear."""
    at = text.find(part)
    if at < 0:
        raise ValueError("nothing was changed: the old text is not in the file; read it again")
    if text.find(part, at + 1) >= 0:
        n = max(2, text.count(part))
        raise ValueError(f"nothing was changed: the old text is there {n} times; give more of what is around it")
    return at


def _more(ends: list[str]) -> int:
    """How many characters longer these line ends are than "\\n" for each."""
    return sum(map(len, ends)) - len(ends)


def diff(path: str, old: str | None, new: str) -> str:
    """A unified diff; `old` is None for a new file."""
    before, after = _lines(old or ""), _lines(new)
    names = "/dev/null" if old is None else f"a/{path}", f"b/{path}"
    n_head, n_tail = _alike(before, after)
    if (len(before) - n_head - n_tail) * (len(after) - n_head - n_tail) <= MAX_COMPARED:
        lines = difflib.unified_diff(before, after, *names, n=CONTEXT)
    else:
        lines = _whole(before, after, names, max(0, n_head - CONTEXT), max(0, n_tail - CONTEXT))
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _whole(before: list[str], after: list[str], names: tuple[str, str], n_head: int, n_tail: int) -> list[str]:
    """A diff of one block, all old lines and then all new ones, but for so many at both ends."""
    old, new = before[n_head : len(before) - n_tail], after[n_head : len(after) - n_tail]
    place = f"@@ -{n_head + 1},{len(old)} +{n_head + 1},{len(new)} @@\n"
    changes = *(f"-{line}" for line in old), *(f"+{line}" for line in new)
    return [f"--- {names[0]}\n", f"+++ {names[1]}\n", place, *changes]


def _alike(a: Sequence, b: Sequence) -> tuple[int, int]:
    """How much they have in common at the beginning, and of the rest at the end."""
    most = min(len(a), len(b))
    head = next((i for i in range(most) if a[i] != b[i]), most)
    most -= head
    return head, next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)


def _lines(text: str) -> list[str]:
    return list(io.StringIO(text, newline="\n"))
