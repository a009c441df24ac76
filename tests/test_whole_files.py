"""Files that are written whole: what is there already is replaced unless it is a device."""

import os
import stat
from pathlib import Path

import pytest

from v4cli.files import write_atomically


def test_a_file_and_a_link_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    for name in ("target", "link", "new"):
        write_atomically(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new" and not (tmp_path / name).is_symlink()


def test_a_device_stays(tmp_path: Path) -> None:
    place = tmp_path / "x"
    try:
        os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    before = place.lstat()
    with pytest.raises(OSError, match="it is a device"):
        write_atomically(place, b"new")
    assert place.lstat().st_ino == before.st_ino and os.listdir(tmp_path) == ["x"]
