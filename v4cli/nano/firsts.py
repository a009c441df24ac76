"""What a newcomer types, as scenes: wordings of grammars, strings of all shapes, results as the real tools give."""

import math
from collections.abc import Callable

from v4cli.nano import questions, wordings
from v4cli.nano.grammar import one_of, wording
from v4cli.nano.keyboard import filled, typed
from v4cli.nano.skills import Scene, answer, call, result, user
from v4cli.nano.strings import NO_SUFFIX, Strings
from v4cli.nano.talk import NO_IDEA

Weighted = tuple[tuple[Callable[[Scene], list[dict]], int], ...]  # skills and how often they are drawn
LONG_LINES, SHORT_LINES = 8, 3  # results of so many lines or more are not repeated; so few are
MOST_LINES = 12, 12, 30  # of the long ones, drawn from these
MANY_NAMES = 12, 18  # bounds of how many names are not repeated
ERRORS = (
    "no such file", "permission denied", "it is not a text file in UTF-8 (4096 bytes)",
    "it is a folder; list_folder lists it",
    "it is not a folder", "it is outside the workspace /home/anna, which is all that can be used", "is a directory",
    "this call was not run: the user said no", "this call was not run: the user interrupted",
)  # fmt: skip
NOBODY = "nobody can be asked whether it should run"
NO_SANDBOX = "there is no sandbox"
NOT_RUN = {  # why a command was not run, and what is said of it
    "the user said no": "the user said no",
    "the user interrupted": "the user interrupted",
    f"{NOBODY}; the user can allow it by starting with --approve all": "nobody can be asked",
    "only reading is allowed at the moment; tell the user what you would do": "only reading is allowed at the moment",
    f"{NO_SANDBOX} (bwrap is not installed), and {NOBODY} without one": NO_SANDBOX,
}
UNITS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _said(s: Scene, grammars: tuple[str, ...], bare: tuple[str, ...] = ()) -> tuple[str, bool]:
    """A wording with empty slots, as typed, and whether it is a bare command, which nothing is added to."""
    if bare and not s.held_out and s.rng.random() < 0.3:
        return s.rng.choice(bare), True
    return typed(s.rng, wording(s.rng, grammars, s.held_out)), False


def _call(
    s: Scene, question: str, thought: str, name: str, arguments: dict, text: str, reply: str, last: str
) -> list[dict]:
    """One call and the answer; where the tool is not there, what is said then."""
    if name not in s.tools:
        return [user(question), _missing(name)]
    return [user(question), call(thought, (name, arguments)), result(text), answer(reply, last)]


def _missing(name: str) -> dict:
    reply = f"I would need the tool {name} for that, and it is not available here."
    return answer(reply, f"This needs {name}, but I do not have it.")


# -- files -----------------------------------------------------------------------------------------------------


def list_here(s: Scene) -> list[dict]:
    text, _ = _said(s, wordings.LIST_HERE, wordings.LIST_HERE_BARE)
    return _listing(s, text, ".", "This folder", "this folder")


def list_path(s: Scene) -> list[dict]:
    text, bare = _said(s, wordings.LIST, wordings.LIST_BARE)
    path = s.words.folder()
    return _listing(s, filled(s.rng, text, bare, folder=path), path, path, path)


def _listing(s: Scene, question: str, path: str, start: str, name: str) -> list[dict]:
    rng, roll = s.rng, s.rng.random()
    many = rng.randint(*MANY_NAMES) if roll > 0.93 else rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7))
    many = 1 if s.brief else many
    names = sorted(
        {
            s.words.file() if rng.random() < 0.7 else s.words.folder().strip("./~").split("/")[0] + "/"
            for _ in range(many)
        }
    )
    if roll < 0.06:
        text, reply = "[the folder is empty]", f"{start} is empty."
    elif roll < 0.12 and path != ".":
        error = rng.choice(ERRORS)
        text, reply = f"error: {error}", f"I could not list {path}: {error}."
    elif len(names) >= MANY_NAMES[0] - 2:
        text, reply = "\n".join(names), "There are many names; the list above has them all."
    else:
        text, reply = "\n".join(names), f"{start} contains: {', '.join(names)}"
    return _call(s, question, f"I will list {name}.", "list_folder", {"path": path}, text, reply, "I have the list.")


def read(s: Scene) -> list[dict]:
    text, bare = _said(s, wordings.READ, wordings.READ_BARE)
    path = s.rng.choice(NO_SUFFIX) if s.rng.random() < 0.08 else s.words.path()
    content, reply, last = _content(s, path)
    question = filled(s.rng, text, bare, file=path)
    return _call(s, question, f"I will read {path}.", "read_file", {"path": path}, content, reply, last)


def _content(s: Scene, path: str) -> tuple[str, str, str]:
    """A file's text, the answer, the thought before it."""
    rng, roll = s.rng, s.rng.random()
    if s.brief:
        roll = rng.choice((0.05, 0.5, 0.5))  # an error, one line
    if roll < 0.1:
        error = "no such file" if rng.random() < 0.6 else rng.choice(ERRORS)
        return f"error: {error}", f"I could not read {path}: {error}.", "That did not work."
    if roll < 0.2:
        lines = s.words.lines(LONG_LINES, rng.choice(MOST_LINES))
        return "\n".join(lines) + "\n", "I have read it. It is too long for me to repeat.", "This is a long text."
    if roll < 0.55:
        line = s.words.text().strip()
        return line + rng.choice(("", "\n")), f"{path} says: {line}", f"The tool returned: {line}."
    lines = [line.strip() for line in s.words.lines(2, SHORT_LINES)]
    if len(lines) > 2 and rng.random() < 0.4:
        lines.insert(1, "")
    text = "\n".join(lines)
    return text + rng.choice(("", "\n", "\n")), f"{path} says:\n{text}", "The tool returned a few lines."


def cannot_file(s: Scene) -> list[dict]:
    """More than nano can do with a file."""
    text, _ = _said(s, questions.CANNOT_FILE)
    question = filled(s.rng, text, False, file=s.words.path())
    return [user(question), answer(NO_IDEA, "This needs knowledge that I do not have.")]


def search(s: Scene) -> list[dict]:
    rng, here = s.rng, s.rng.random() < 0.6
    grammars = (wordings.SEARCH_HERE, wordings.SEARCH_BARE) if here else (wordings.SEARCH, wordings.SEARCH_IN_BARE)
    text, bare = _said(s, *grammars)
    pattern, path = s.words.word(), "." if here else rng.choice((s.words.path, s.words.folder))()
    if rng.random() < 0.08:
        pattern = " ".join(s.words.plain_word() for _ in range(rng.randint(2, 3)))
        text = text.replace("{word}", rng.choice(('"{word}"', "'{word}'")))
    question = filled(rng, text, bare, word=pattern, place=path)
    n, roll = (rng.choice((0, 0, 1)), 1.0) if s.brief else (rng.choice((0, 1, 1, 2, 2, 3, 4)), rng.random())
    places = [f"{s.words.path() if here or '.' not in path else path}:{s.words.number(1, 300)}" for _ in range(n)]
    name = "any file" if here else path
    if roll < 0.06:
        found = [f"{s.words.path()}:{i}: {pattern} {s.words.plain_word()}" for i in range(rng.randint(LONG_LINES, 14))]
        text, reply = "\n".join(found), f"{pattern} is in many places; the list above has them all."
    elif places:
        around = "{1} {0}", "{0} {1}", "{0}", "{0}: {1}", "# {0}", "{1} {0} {1}"
        text = "\n".join(f"{place}: {rng.choice(around).format(pattern, s.words.text())}" for place in places)
        reply = f"{pattern} is in: {', '.join(places)}"
    else:
        text, reply = "no matches", f"I did not find {pattern} in {name}."
    thought = f"I will search for {pattern} in {'all files' if here else path}."
    return _call(
        s, question, thought, "search_text", {"pattern": pattern, "path": path}, text, reply, "The search has finished."
    )


# -- clock, calculator, shell ----------------------------------------------------------------------------------


def clock(s: Scene) -> list[dict]:
    rng = s.rng
    day = rng.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"))
    date = f"20{rng.randint(20, 39)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    grammars, bare, reply = rng.choice((
        (wordings.TIME, wordings.TIME_BARE, f"It is {time}."),
        (wordings.DATE, wordings.DATE_BARE, f"Today is {day}, {date}."),
        (wordings.YEAR, ("year?", "which year?"), f"It is the year {date[:4]}."),
    ))  # fmt: skip
    text, _ = _said(s, grammars, bare)
    return _call(
        s, text, "I will look at the clock.", "clock", {}, f"{date} {time} {day}", reply, "The clock has answered."
    )


def calculate(s: Scene) -> list[dict]:
    if s.rng.random() < 0.12:
        grammar, form = s.rng.choice(wordings.SUM_ORDERS)
        slots = {"a": str(s.words.number(1, 999)), "b": str(s.words.number(1, 99))}
        question = filled(s.rng, typed(s.rng, wording(s.rng, (grammar,), s.held_out)), True, **slots)
        expression = form.format(**slots)
    else:
        text, bare = _said(s, wordings.SUM, wordings.SUM_BARE)
        shown, expression = spoken(s.words) if s.rng.random() < 0.5 else (e := s.words.expression(), e)
        question = filled(s.rng, text, bare, sum=shown)
    value = evaluated(expression)
    thought = f"I need the value of {expression}. I will use calculator."
    reply = f"{expression} = {value}"
    return _call(
        s, question, thought, "calculator", {"expression": expression}, value, reply, f"The result is {value}."
    )


def spoken(words: Strings) -> tuple[str, str]:
    """An expression in words, and in symbols."""
    rng = words.rng
    high = rng.choice((12, 12, 99, 999, 9999))
    a, b, c = rng.randint(1, high), rng.randint(1, high), rng.randint(1, 100)
    forms = (
        ("{a} plus {b}", "{a}+{b}"), ("{a} minus {b}", "{a}-{b}"), ("{a} times {b}", "{a}*{b}"), ("{a} times {b}",
        "{a}*{b}"),
        ("{a} divided by {b}", "{a}/{b}"), ("{a} multiplied by {b}", "{a}*{b}"), ("{a} over {b}", "{a}/{b}"),
        ("{a}x{b}", "{a}*{b}"),
        ("{a} x {b}", "{a}*{b}"), ("{a} and {b} together", "{a}+{b}"), ("the sum of {a} and {b}", "{a}+{b}"),
        ("the product of {a} and {b}", "{a}*{b}"), ("the difference of {a} and {b}", "{a}-{b}"),
        ("the square root of {a}", "sqrt({a})"),
        ("square root of {a}", "sqrt({a})"), ("{a} squared", "{a}**2"), ("{a} to the power of {c}", "{a}**{c}"),
        ("half of {a}", "{a}/2"),
        ("twice {a}", "2*{a}"), ("{c}% of {a}", "{c}/100*{a}"), ("{c} percent of {a}", "{c}/100*{a}"),
        ("{a} plus {b} plus {c}", "{a}+{b}+{c}"),
        ("{a} times {b} plus {c}", "{a}*{b}+{c}"), ("{a} plus {b} minus {c}", "{a}+{b}-{c}"), ("{a} × {b}",
        "{a}*{b}"), ("{a} ÷ {b}", "{a}/{b}"),
    )  # fmt: skip
    said, meant = rng.choice(forms)
    if "power" in said:
        a, c = rng.randint(2, 12), rng.randint(2, 8)
    meant = meant.format(a=a, b=b, c=c)
    if max(a, b) < len(UNITS) and " " in said and "%" not in said and rng.random() < 0.4:
        return said.format(a=UNITS[a], b=UNITS[b], c=c), meant
    return said.format(a=a, b=b, c=c), meant


def evaluated(expression: str) -> str:
    """Value of an expression as the calculator prints it."""
    value = eval(expression.replace("^", "**"), {"__builtins__": {}, "sqrt": math.sqrt})
    if isinstance(value, float):
        value = round(value, 4) if abs(value) >= 1 else float(f"{value:.4g}")
    return str(value).removesuffix(".0")


def shell(s: Scene) -> list[dict]:
    text, _ = _said(s, wordings.RUN, wordings.RUN_BARE)
    command = s.words.command()
    return _ran(s, filled(s.rng, text.rstrip("?.! "), True, command=command), command)


def shell_task(s: Scene) -> list[dict]:
    """Something to do for which there is a command."""
    rng = s.rng
    found, command = one_of(s.rng, wordings.SHELL, s.held_out)
    slots = {
        "file": s.words.file(), "file2": s.words.file(), "name": s.words.word(), "n": str(rng.randint(1, 60)),
        "python": s.words.file().rsplit(".", 1)[0] + ".py",
    }  # fmt: skip
    question = filled(rng, typed(rng, found), False, **slots)
    return _ran(s, question, command.format(**slots))


def _ran(s: Scene, question: str, command: str) -> list[dict]:
    rng, roll = s.rng, s.rng.random()
    if roll < (0.65 if s.brief else 0.12):
        output, reply = "[no output]", "The command printed nothing."
    elif roll < 0.24:
        status = rng.choice((1, 1, 2, 127, 128, 255))
        lines = (
            []
            if rng.random() < 0.2
            else [rng.choice((f"bash: line 1: {command.split()[0]}: command not found", s.words.text().strip()))]
        )
        output = "\n".join([*lines, f"[exit status {status}]"])
        reply = f"The command failed with status {status}" + (f": {lines[0]}" if lines else ".")
    elif roll < 0.3:
        reason = rng.choice(list(NOT_RUN))
        output, reply = f"error: this call was not run: {reason}", f"The command was not run: {NOT_RUN[reason]}."
    elif roll < 0.37:
        output = "\n".join(s.words.lines(LONG_LINES, rng.choice(MOST_LINES)))
        reply = "The command has finished; its output is above."
    elif roll < 0.7:
        line = rng.choice((s.words.text, s.words.anything, s.words.path))().strip()
        output, reply = line, f"The command printed: {line}"
    else:
        lines = [line.strip() for line in s.words.lines(2, SHORT_LINES)]
        output = "\n".join(lines)
        reply = f"The command printed:\n{output}"
    return _call(
        s,
        question,
        f"I will run {command}.",
        "run_shell",
        {"command": command},
        output,
        reply,
        "The command has ended.",
    )


TOOLED = (
    (list_here, 4), (list_path, 3), (read, 6), (search, 6), (clock, 3), (calculate, 5), (shell, 4), (shell_task, 3),
    (cannot_file, 1),
)  # fmt: skip
DRILLED = (
    (list_here, 3), (list_path, 3), (read, 5), (search, 10), (clock, 2), (calculate, 7), (shell, 5), (shell_task, 10),
    (cannot_file, 2),
)  # fmt: skip
