"""The tools that come with v4cli, by name and in sets."""

from v4cli.agent import basics, commands, files, web
from v4cli.agent.process import STANDARD, Limits
from v4cli.agent.tools import Toolbox
from v4cli.errors import UsageError

READ = ("calculator", "clock", "read_file", "list_folder", "search_text")
EDIT = (*READ, "write_file", "edit_file")
PRESETS = {
    "nano": (*READ, "run_shell"),  # the six tools that nano was trained on
    "read": READ,
    "edit": EDIT,
    "all": (*EDIT, "run_shell", "run_python"),
    "none": (),
}
NAMES = (*PRESETS["all"], "fetch_url")


def toolbox(names: str, limits: Limits = STANDARD, network: bool = False) -> Toolbox:
    """The tools of sets and single names, such as "read,run_shell"; `limits` and `network` are for what the commands
    may use. UsageError for a name that is none."""
    tools = [*basics.tools(), *files.tools(), *commands.tools(limits, network), *web.tools()]
    by_name = {tool.name: tool for tool in tools}
    wanted = dict.fromkeys(tool for name in names.split(",") if name.strip() for tool in _named(name.strip()))
    return Toolbox(by_name[name] for name in wanted)


def _named(name: str) -> tuple[str, ...]:
    """The tools of a set, or one."""
    if name in PRESETS:
        return PRESETS[name]
    if name in NAMES:
        return (name,)
    sets = f"{', '.join(PRESETS)}, mcp (not in rollouts)"
    raise UsageError(f"there is no tool {name!r}", f"sets: {sets}; tools: {', '.join(NAMES)}")
