"""Entry point of the `v4` command: how errors and signals become messages and exit codes."""

import os
import re
import sys
import warnings

LACKING = "allocate memory", "failed to map segment", "can't start new thread"  # how libraries say so


def main() -> None:
    """Entry point: every expected error is one line, a hint and a documented exit code."""
    try:
        from v4cli import interrupts, streams

        ours = streams.are_ours()  # else this runs inside of another program, whose process is its own business
        if ours:
            streams.prepare()
            interrupts.install()
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # of libraries, about their own affairs
            if not os.environ.get("HOME"):
                os.environ.pop("HOME", None)  # an empty one says nothing; the user's entry does
    except KeyboardInterrupt:
        os.write(2, b"v4: interrupted\n")
        os._exit(130)
    try:
        status = _status()
    except KeyboardInterrupt:
        status = 130
    if ours:
        interrupts.leave()
    if number := interrupts.told():
        status = 128 + number
        _say("interrupted", "")
        if ours:
            interrupts.end()
    sys.exit(status)


def _status() -> int:
    """Do what the command line says; the exit code."""
    from v4cli.errors import Exit, Interrupted, V4Error, exit_code

    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except SystemExit as leaving:
        return leaving.code or Exit.OK
    except Interrupted as error:
        return _say(str(error), error.hint, error.exit_code)
    except V4Error as error:
        return _fail(str(error), error.hint, error.exit_code)
    except MemoryError:
        return _fail("out of memory", "v4 doctor shows what is free", Exit.RESOURCES)
    except OSError as error:
        shut = isinstance(error, PermissionError) and error.filename
        hint = f"ls -ld {os.path.dirname(error.filename)}" if shut else ""
        if exit_code(error) is Exit.RESOURCES:
            hint = "v4 doctor shows what is free, and whether it can be written"
        return _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", hint, exit_code(error))
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's, about the command line
            return _fail(*_wrong_words(error), Exit.USAGE)
        if os.environ.get("V4_DEBUG"):
            raise
        if isinstance(error, ModuleNotFoundError) and (package := _package(error)):
            return _fail(f"{package} is not installed, and this needs it", f"pip install {package}", Exit.USAGE)
        if lacking := next((text for text in LACKING if text in str(error)), None):
            return _fail(f"out of memory or threads ({lacking})", "ulimit -a shows what is allowed", Exit.RESOURCES)
        return _fail(f"unexpected {type(error).__name__}: {error}", "V4_DEBUG=1 shows where", Exit.FAILURE)


def _wrong_words(error) -> tuple[str, str]:
    """What of a command line is wrong, and what to type."""
    message, context = error.format_message().strip().rstrip("."), getattr(error, "ctx", None)
    path = context.command_path if context else " ".join(["v4", *(word for word in sys.argv[1:2] if word[:1] != "-")])
    near = re.search(r"\s*\(?(?:Did you mean|Possible options:) ([^?)]*)\??\)?\s*$", message)
    hint = f"did you mean {near[1].strip()}?" if near else path.replace("v4", "v4 help", 1)
    if message.startswith("No such command") and path == "v4":
        hint += ' A question: v4 run "WORDS"'
    return message[: near.start()].rstrip(".") if near else message, hint


def _package(error: ModuleNotFoundError) -> str:
    """What would have to be installed; nothing where a module of ours is missing."""
    name = (error.name or "").partition(".")[0]
    return "" if name in ("v4cli", "v4kernels") else name.replace("_", "-")


def _run() -> None:
    if _is_plain_chat():
        from v4cli import settings
        from v4cli.cli.chat import chat
        from v4cli.entries import made
        from v4cli.options import ChatOptions

        chat(made(ChatOptions, settings.defaults("chat")))
    else:
        from v4cli.cli.app import app

        sys.exit(app(standalone_mode=False))


def _is_plain_chat() -> bool:
    """Whether this is `v4` or `v4 chat` on a terminal without options: to parse none would take 0.1 s of the 0.3 s in
    which the prompt should be there."""
    return sys.argv[1:] in ([], ["chat"]) and sys.stdin.isatty()


def _fail(message: str, hint: str, code: int) -> int:
    """Say what went wrong, unless it did because of a signal."""
    from v4cli import interrupts

    return code if interrupts.told() else _say(message, hint, code)


def _say(message: str, hint: str, code: int = 0) -> int:
    """A line for the user, and one with the next command to type: what a name or a file says must not look like more
    of them."""
    from v4cli import interrupts
    from v4cli.clean import on_one_line

    interrupts.say(f"v4: {on_one_line(message)}\n" + (f"hint: {on_one_line(hint)}\n" if hint else ""))
    return code
