"""A workspace with a trap in it, and a user who then works with git there."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import git_detours
import git_traps
from git_traps import SETTINGS, Trap

from v4cli.agent import files, sandbox
from v4cli.agent.process import Limits
from v4cli.agent.tools import Context, ToolError

TRAPS = git_traps.TRAPS | git_detours.TRAPS
COMMANDS = (
    "git status", "git log", "git diff", "git add -A", "git commit -q --allow-empty -m x", "git checkout -q -b new-$N",
    "git stash", "git show --stat", "git branch", "git fetch -q o",
)  # fmt: skip


class Stage:
    """A workspace, a home, and a mark that evil leaves beside them."""

    def __init__(self, root: Path, trap: Trap):
        self.root, self.trap = root, trap
        self.workspace, self.home, self.mark = root / "work", root / "home", root / "mark"
        for folder in (self.workspace, self.home):
            folder.mkdir(parents=True)
        (self.home / ".gitconfig").write_text("[user]\nname=a\nemail=a@b.c\n[init]\ndefaultBranch=main\n")
        variables = {name: value.replace("@", str(self.workspace)) for name, value in trap.variables.items()}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "XDG_"))}
        given = {"HOME": str(self.home), "GIT_TERMINAL_PROMPT": "0", "GIT_CEILING_DIRECTORIES": str(root)}
        self.environment = kept | given | variables
        evil = self.workspace / "evil"
        evil.write_text(f"#!/bin/sh\n: > '{self.mark}'\n")
        evil.chmod(0o755)
        (self.workspace / "evilhooks").mkdir()
        shutil.copy(evil, self.workspace / "evilhooks" / "pre-commit")
        (self.workspace / "evilconfig").write_text(SETTINGS)
        (self.workspace / "file").write_text("x\n")
        if trap.repository:
            self.shell("git init -q . && git add . && git commit -qm first && mkdir -p .git/info", True)
        self.shell(trap.before)

    def shell(self, script: str, check: bool = False, folder: Path | None = None) -> None:
        """What the user does."""
        command = ["bash", "-c", script]
        subprocess.run(command, cwd=folder or self.workspace, env=self.environment, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=check)  # fmt: skip

    def attempt(self) -> list[str]:
        """What the model does, with nothing but v4 between; what it is told."""
        with patch.dict(os.environ, self.environment, clear=True):
            if isinstance(self.trap.attempt, str):
                command = ["bash", "-c", self.trap.attempt]
                done = sandbox.run(command, self.workspace / self.trap.inside, Limits(seconds=self.trap.seconds))
                return [done.note + done.text]
            return [self._write(*call) for call in self.trap.attempt]

    def _write(self, tool: str, path: str, text: str) -> str:
        text, context = self._filled(text), Context(self.workspace)
        first = text.split("\n")[0]
        try:
            if tool == "write_file":
                return files.write_file({"path": path, "content": text}, context)
            return files.edit_file({"path": path, "old": first, "new": text}, context)
        except ToolError as error:
            return str(error)

    def _filled(self, text: str) -> str:
        return text.replace("$MARK", str(self.mark)).replace("$WORK", str(self.workspace))

    def attempt_unhindered(self) -> None:
        """The same without v4."""
        if isinstance(self.trap.attempt, str):
            self.shell(self.trap.attempt, folder=self.workspace / self.trap.inside)
            return
        for tool, path, text in self.trap.attempt:
            text = self._filled(text)
            path = self.workspace / path
            path.parent.mkdir(parents=True, exist_ok=True)
            old = path.read_text() if tool == "edit_file" else ""
            path.write_text(old.replace(text.split("\n")[0], text, 1) if old else text)

    def use_git(self) -> bool:
        """The user works with git; whether evil ran."""
        for n, folder in enumerate({self.workspace, (self.workspace / self.trap.at)}):
            if folder.is_dir():
                commands = [*COMMANDS, *self.trap.does]
                self.shell(f"N={n}; " + "; ".join(commands), folder=folder)
        return self.mark.exists()


def work_unhindered(root: Path, names: Iterable[str]) -> set[str]:
    """Those of these traps that work where nothing prevents them."""
    found = set()
    for n, name in enumerate(names):
        stage, trap = Stage(root / str(n), TRAPS[name]), TRAPS[name]
        if trap.seconds > 10:
            stage.attempt_unhindered()
            found |= {name} if stage.use_git() else set()
    return found


def run_all(root: Path, result: Path) -> None:
    """Try every trap below `root`; the names of those that worked go to `result`, as JSON."""
    worked = []
    for n, (name, trap) in enumerate(TRAPS.items()):
        stage = Stage(root / str(n), trap)
        stage.attempt()
        if stage.use_git():
            worked.append(name)
    result.write_text(json.dumps(worked))
