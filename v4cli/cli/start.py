"""Entry point of the `v4` command: how errors become messages and exit codes."""

import errno
import os
import sys

from v4cli import terminal
from v4cli.clean import on_one_line
from v4cli.errors import Exit, V4Error


def main() -> None:
    """Entry point: every expected error is one line, a hint and a documented exit code."""
    try:
        if _is_plain_chat():
            from v4cli import settings
            from v4cli.cli.chat import ChatRequest, chat

            chat(ChatRequest(**settings.defaults("chat", ChatRequest.__dataclass_fields__)))
        else:
            from v4cli.cli.app import app

            app()
    except V4Error as error:
        _fail(str(error), error.hint, error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", "", Exit.INTERRUPTED)
    except MemoryError:
        _fail("out of memory", "v4 doctor shows what is free", Exit.RESOURCES)
    except OSError as error:
        code = Exit.RESOURCES if error.errno == errno.ENOSPC else Exit.FAILURE
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", "", code)
    except Exception as error:
        if os.environ.get("V4_DEBUG"):
            raise
        _fail(f"unexpected {type(error).__name__}: {error}", "V4_DEBUG=1 shows where", Exit.FAILURE)


def _is_plain_chat() -> bool:
    """Whether this is `v4` or `v4 chat` on a terminal without options: to parse none would take 0.1 s of the 0.3 s in
    which the prompt should be there."""
    return sys.argv[1:] in ([], ["chat"]) and sys.stdin.isatty()


def _fail(message: str, hint: str, code: Exit) -> None:
    """One line for each: what a name or a file says must not look like more of them."""
    terminal.err.write(f"v4: {on_one_line(message)}\n" + (f"hint: {on_one_line(hint)}\n" if hint else ""))
    sys.exit(code)
