"""`v4 help`: what --help says, found by the words that people try."""

import difflib

from v4cli import paths
from v4cli.cli import templates
from v4cli.cli.parameters import RENAMED
from v4cli.errors import UsageError


def text(context, words: list[str]) -> str:
    """The help of the command that these words name below the one of `context`, or of a topic. UsageError."""
    if words == ["templates"]:
        return templates.HELP.format(folder=paths.templates_dir())
    command = context.command
    for word in words:
        below = getattr(command, "commands", {})
        found = below.get(RENAMED.get(word, word))
        if found is None:
            named = " ".join(["v4", *words])
            near = difflib.get_close_matches(word, [*below, "templates"], 1)
            raise UsageError(f"there is no command {named!r}", f"v4 help {near[0]}" if near else "v4 help lists all")
        command, context = found, found.make_context(found.name, [], parent=context, resilient_parsing=True)
    return command.get_help(context) + "\n"
