"""All the tools of a conversation: those that come with v4cli, and those of the MCP servers in the settings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from v4cli import settings
from v4cli.agent.builtin import toolbox
from v4cli.agent.tools import Toolbox

SERVERS = "mcp"  # stands for all tools of all servers


@contextmanager
def toolset(names: str, note: Callable[[str], None], network: bool = False) -> Iterator[Toolbox]:
    """The tools of sets and single names, with "mcp" the servers' too, while the context lasts. `note` is told of
    servers that cannot be used; `network`: whether commands may use it. UsageError."""
    wanted = [name.strip() for name in names.split(",")]
    ours = toolbox(",".join(name for name in wanted if name != SERVERS), network=network)
    servers = settings.load().mcp if SERVERS in wanted else {}
    if not servers:
        yield ours
        return
    from v4cli.agent.mcp_client import mcp_tools

    with mcp_tools(servers, note) as theirs:
        yield Toolbox([*ours.tools.values(), *theirs])
