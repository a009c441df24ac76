"""Templates: prompts in files of the user's, whose variables the command line gives."""

import difflib
import re
from collections.abc import Sequence

from v4cli import paths
from v4cli.errors import UsageError
from v4cli.files import contents, decoded

MAX_BYTES = 1 << 20
ENDING = ".md"
INPUT = "input"  # the variable that stands for what is said beside the template
_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
HELP = """\
A template is a file NAME.md in {folder}: a prompt in which $input
stands for all that is said beside it (files, stdin and words), and any other $name or ${{name}} for what
--var name=VALUE gives. Where there is no $input, the rest comes below the template. $$ is a dollar.

    mkdir -p {folder}
    echo 'Review this change. Name what is wrong in $language code: $input' > {folder}/review.md
    git diff | v4 run -t review --var language=Python -f -
"""


def filled(name: str, variables: Sequence[str], given: str) -> str:
    """The template of this name with its variables; `given` is $input. UsageError names what is missing or unknown."""
    text = _read(name)
    values = dict(_variable(variable) for variable in variables)
    used = {match[2] or match[3] for match in _VARIABLE.finditer(text)} - {None}
    if missing := sorted(used - values.keys() - {INPUT}):
        raise UsageError(f"template {name}: {', '.join(missing)} is not given", f"--var {missing[0]}=VALUE")
    if unknown := sorted(values.keys() - used):
        has = ", ".join(sorted(used - {INPUT})) or "no variables"
        raise UsageError(f"template {name} has no ${unknown[0]}", f"it has {has}; drop --var {unknown[0]}=…")
    filled = _VARIABLE.sub(lambda m: "$" if m[1] else given if INPUT in m.groups() else values[m[2] or m[3]], text)
    return filled if INPUT in used or not given else f"{filled.rstrip()}\n\n{given}"


def names() -> list[str]:
    """All that there are."""
    return sorted(path.name.removesuffix(ENDING) for path in paths.templates_dir().glob(f"*{ENDING}"))


def _read(name: str) -> str:
    folder = paths.templates_dir()
    if "/" in name or name.startswith("."):
        raise UsageError(f"--template {name}: a name, not a path", f"cp {name} {folder}/")
    path = folder / f"{name}{ENDING}"
    if not path.is_file():
        there = names()
        near = difflib.get_close_matches(name, there, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}" if there else f"write {path}"
        raise UsageError(f"there is no template {name!r}", hint)
    return decoded(contents(path, MAX_BYTES, UsageError), str(path))


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--var {text[:60]!r} is not NAME=VALUE", "--var language=Python")
    if name == INPUT:
        raise UsageError("--var input=… is what is said beside the template", "say it as the prompt")
    return name, value
