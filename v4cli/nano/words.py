"""Random words, names, paths and expressions for generated dialogues.

Every made-up value belongs to "train" or "heldout" by a hash of its text, so that evaluation never sees a trained
one. Common words are in both: each is a token or two of its own, and a token that is never trained cannot be copied.
"""

import random
import re
import zlib

from v4cli.nano import talk

SYLLABLES = [c + v for c in "b d f g k l m n p r s t v z ch sh st tr".split() for v in "aeiou"]
CITIES = "Lisbon Oslo Quito Cairo Hanoi Turin Dakar Perth Lyon Kyoto Lima Riga Porto Izmir Osaka Basel".split()
COLOURS = "red blue green yellow purple orange black white brown pink silver golden".split()
REAL = (
    "notes readme report main config data todo test index server client letter budget plan draft photo music home "
    "project recipe invoice summary table user error backup list story paper image setup start hello world apple"
).split()
TALKED = " ".join((*(" ".join((*questions, reply)) for questions, reply in talk.TALK), *talk.UNKNOWN, *talk.TOPICS))
COMMON = tuple(sorted({*REAL, *re.findall(r"[a-z]{2,}", TALKED.lower())}))
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SUFFIXES = ".txt .md .log .csv .py .json .toml".split()
OPERATORS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


class Words:
    """Draws values of one split from a random generator."""

    def __init__(self, rng: random.Random, split: str):
        self.rng = rng
        self.heldout = split == "heldout"

    def _draw(self, make) -> str:
        while True:
            value = make()
            if (zlib.crc32(value.encode()) % 10 == 0) == self.heldout:
                return value

    def word(self) -> str:
        """A lower-case word: made of syllables, of random letters, or a common one."""
        return self.rng.choice(COMMON) if self.rng.random() < 0.2 else self._draw(self._made_up)

    def _made_up(self) -> str:
        if self.rng.random() < 0.3:
            return "".join(self.rng.choices(LETTERS, k=self.rng.randint(2, 7)))
        return "".join(self.rng.choices(SYLLABLES, k=self.rng.choice((2, 2, 3))))

    def words(self, low: int, high: int) -> list[str]:
        """Different words."""
        count, found = self.rng.randint(low, high), []
        while len(found) < count:
            word = self.word()
            if word not in found:
                found.append(word)
        return found

    def name(self) -> str:
        return self.word().capitalize()

    def number(self, low: int = 2, high: int = 999) -> int:
        return self.rng.randint(low, high)

    def file(self) -> str:
        return self.word() + self.rng.choice(SUFFIXES)

    def folder(self) -> str:
        return self.rng.choice(("", "", "./", "/home/", "src/", "docs/")) + self.word()

    def path(self) -> str:
        return self.file() if self.rng.random() < 0.6 else f"{self.folder()}/{self.file()}"

    def email(self) -> str:
        return f"{self.word()}@{self.word()}.{self.rng.choice(('com', 'org', 'net'))}"

    def expression(self) -> str:
        """Two or three operands, sometimes with brackets."""
        return self._draw(self._expression)

    def _expression(self) -> str:
        a, b, c = (self.number(2, self.rng.choice((9, 99, 999))) for _ in range(3))
        x, y = self.rng.choices("+-*/", k=2)
        shapes = (f"{a}{x}{b}", f"{a}{x}{b}", f"{a} {x} {b}", f"{a}{x}{b}{y}{c}", f"({a}{x}{b}){y}{c}")
        return self.rng.choice(shapes)

    def spoken(self) -> tuple[str, str]:
        """An expression in words and in symbols."""
        a, b, op = self.number(), self.number(), self.rng.choice("+-*/")
        return f"{a} {OPERATORS[op]} {b}", f"{a}{op}{b}"

    def command(self) -> str:
        word, path, folder = self.word(), self.path(), self.folder()
        commands = (
            f"ls -l {folder}", f"cat {path}", f"wc -l {path}", f"echo {word}", f"head -n {self.number(2, 20)} {path}",
            f"grep {word} {path}", "pwd", "whoami", "uname -a", f"mkdir {folder}", "df -h", f"du -sh {folder}",
        )  # fmt: skip
        return self._draw(lambda: self.rng.choice(commands) if self.rng.random() < 0.7 else f"echo {self.word()}")


def evaluate(expression: str) -> str:
    """Value of a generated expression as the calculator prints it."""
    value = eval(expression, {"__builtins__": {}})
    return str(round(value, 4)).removesuffix(".0")
