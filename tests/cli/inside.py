"""`v4` in this process, in a pipe: as a user runs it, without the second that a process takes."""

import sys
from types import SimpleNamespace

import pytest

from v4cli.cli.start import main


@pytest.fixture
def v4_inside(tmp_path, monkeypatch, capsys):
    """v4_inside(argument, ..., stdin=""): what `v4 ARGUMENTS` ends with and prints."""

    def made(*args, stdin: bytes | str = "") -> SimpleNamespace:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["v4", *map(str, args)])
        (path := tmp_path / "stdin").write_bytes(data)
        monkeypatch.setattr(sys, "stdin", path.open())
        monkeypatch.setattr("v4cli.cli.said.read_stdin", lambda limit: data)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(code=int(ended.value.code or 0), out=said.out, err=said.err)

    return made
