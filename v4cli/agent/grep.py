"""The program that searches: grep.py PATTERN PATH. A process of its own, so that it can be stopped; knows the standard
library only.

It prints JSON, a list a line: ["match", path, line number, text], ["at", path] about once a second (everything before
this file has been searched), and last ["end", whether there are more matches, what was left out]. Without that line it
did not get to the end. Left out is, by reason, how many files and the names of a few.
"""

import codecs
import fnmatch
import json
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Iterator

MAX_MATCHES = 200
MAX_SHOWN = 300  # characters of a line
MAX_NAMES = 3  # of files that were left out for the same reason
IGNORED_BYTES = 1 << 16  # of .gitignore
BLOCK = 1 << 20  # bytes read at once; lines of more characters are searched in pieces


class Search:
    """One search: what was found, and what was left out."""

    def __init__(self, pattern: re.Pattern):
        self.pattern, self.later = pattern, looked_at_later()
        self.n_matches = 0
        self.left_out: dict[str, list] = {}

    def run(self, path: str) -> None:
        """Search a file, or all below a folder in order. Stops when there are more matches than are told."""
        told = -1.0
        for file in self._files(path):
            if time.monotonic() > told + 1:
                told = time.monotonic()
                tell("at", file)
            try:
                self._search(file)
            except OSError as error:
                self._leave_out(file, reason(error))
            if self.n_matches > MAX_MATCHES:
                break
        tell("end", self.n_matches > MAX_MATCHES, self.left_out)

    def _files(self, path: str) -> Iterator[str]:
        """The regular files; nothing behind symbolic links, nothing of git's unless that is where to look."""
        todo = [path]
        while todo:
            at = todo.pop()
            try:
                mode = os.lstat(at).st_mode
                if stat.S_ISDIR(mode) and (at == path or os.path.basename(at) != ".git"):
                    todo += (os.path.join(at, name) for name in sorted(os.listdir(at), key=self._order, reverse=True))
                elif stat.S_ISREG(mode):
                    yield at
                else:
                    self._leave_out(at, kind(mode))
            except OSError as error:
                self._leave_out(at, reason(error))

    def _order(self, name: str) -> tuple[bool, str]:
        return bool(self.later.fullmatch(name)), name

    def _search(self, file: str) -> None:
        """Match a file line by line, reading it in pieces."""
        too_long = False
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replaced")
        n_replaced = Replaced.count
        # it may have become a pipe meanwhile, which must not be waited for, or a link
        with open(os.open(file, flags("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY")), "rb", buffering=0) as stream:
            number, rest, block = 1, "", b"x"
            while block and self.n_matches <= MAX_MATCHES:
                block = stream.read(BLOCK)
                if b"\0" in block:
                    self._leave_out(file, "binary" if number == 1 and not rest else "binary from somewhere on")
                    return
                *lines, rest = (rest + decoder.decode(block, not block)).split("\n")
                goes_on = bool(block) and len(rest) >= BLOCK
                too_long |= goes_on
                if goes_on or (rest and not block):
                    lines.append(rest)
                    rest = ""
                number = self._match(file, lines, number) - goes_on
        if too_long:
            self._leave_out(file, "lines too long to be matched as a whole")
        if Replaced.count > n_replaced:
            self._leave_out(file, "not UTF-8, so that only ASCII could match")

    def _match(self, file: str, lines: list[str], number: int) -> int:
        """Tell which of the lines, of which the first has this number, match; the number of the next line."""
        for i, line in enumerate(lines):
            if match := self.pattern.search(line.removesuffix("\r")):
                self.n_matches += 1
                if self.n_matches > MAX_MATCHES:
                    break
                tell("match", file, number + i, around(line, match))
        return number + len(lines)

    def _leave_out(self, file: str, why: str) -> None:
        about = self.left_out.setdefault(why, [0])
        about[0] += 1
        about += [file] * (about[0] <= MAX_NAMES)


class Replaced:
    """The way of the decoder with bytes that are no text, and how many there were."""

    count = 0

    def __call__(self, error: UnicodeError) -> tuple[str, int]:
        Replaced.count += 1
        return "\ufffd", error.end


def flags(*names: str) -> int:
    """Those of os.open that the system has."""
    return sum(getattr(os, name, 0) for name in names)


def looked_at_later() -> re.Pattern:
    """Names that are seldom meant, and must not keep others out when there are many matches: hidden ones, and what
    .gitignore is about, as far as it lists names."""
    names = [".*"]
    try:
        with open(os.open(".gitignore", flags("O_NONBLOCK", "O_BINARY")), "rb") as file:
            listed = (file.read(IGNORED_BYTES) or b"").decode("utf-8", "replace").split("\n")
        names += (line.strip().strip("/") for line in listed if line.strip() and line[0] not in "#!")
    except OSError:
        pass
    return re.compile("|".join(map(fnmatch.translate, names)))


def around(line: str, match: re.Match) -> str:
    """The line; of a long one, a part with the match."""
    line = line.removesuffix("\r")
    start = max(0, match.start() - MAX_SHOWN // 3) if match.end() > MAX_SHOWN else 0
    shown = line[start : start + MAX_SHOWN]
    return "…" * (start > 0) + shown + "…" * (start + len(shown) < len(line))


def kind(mode: int) -> str:
    """What it is that is no regular file."""
    names = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "of git", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")


def reason(error: OSError) -> str:
    return (error.strerror or "error").lower()


def tell(*record) -> None:
    print(json.dumps(record), flush=True)


def main(pattern: str, path: str) -> int:
    """Search; the exit status is 2 if the pattern cannot be used."""
    codecs.register_error("replaced", Replaced())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # about what means something else elsewhere: [[:alpha:]]
            wanted = re.compile(pattern)
    except (re.error, Warning, RecursionError, OverflowError) as error:
        print(f"the pattern is not a regular expression as Python knows them: {error}")
        return 2
    Search(wanted).run(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
