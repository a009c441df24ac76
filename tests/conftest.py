"""Shared fixtures: where the golden data is, and one thread per process so that timings do not fight."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of golden data beside the checkout; tests that need it skip where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip(f"golden data not found beside the checkout ({GOLDEN})")
    return GOLDEN
