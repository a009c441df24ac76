"""Compiled kernels are kept for one run of the tests only, not in the user's folders. Tests on a GPU are skipped where
there is none."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def triton_cache(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    side_by_side = "PYTEST_XDIST_WORKER" in os.environ  # then its parent is that of all
    os.environ["TRITON_CACHE_DIR"] = str((base.parent if side_by_side else base) / "triton")


@pytest.fixture(scope="session")
def card():
    """The first GPU."""
    pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
    from v4kernels.triton.cuda import Cuda
    from v4kernels.triton.device import DeviceError

    try:
        return Cuda()
    except DeviceError as none:
        pytest.skip(str(none))
