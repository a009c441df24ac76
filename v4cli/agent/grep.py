"""A small search program for where ripgrep is missing: grep.py PATTERN PATH. Knows the standard library only."""

import os
import re
import stat
import sys
from collections.abc import Iterator


def main(pattern: str, path: str) -> int:
    """Print path, NUL, line number, colon, line for each match; the exit status is grep's."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        print(f"the pattern is not a regular expression: {error}")
        return 2
    n_matches = 0
    for file in files(path):
        for number, line in enumerate(lines(file), 1):
            if wanted.search(line):
                print(f"{file}\0{number}:{line[:1000]}")
                n_matches += 1
    return 0 if n_matches else 1


def files(path: str) -> Iterator[str]:
    """The file, or all files below the folder in order; nothing behind symbolic links, nothing of git's."""
    if os.path.islink(path) or not os.path.isdir(path):
        yield path
        return
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return
    for name in names:
        if name != ".git":
            yield from files(os.path.join(path, name))


def lines(file: str) -> list[str]:
    """Lines of a text file; none of anything else."""
    try:
        if not stat.S_ISREG(os.lstat(file).st_mode):
            return []
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError:
        return []
    return [] if b"\0" in data else data.decode("utf-8", "replace").removesuffix("\n").split("\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
