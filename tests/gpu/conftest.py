"""Compiled kernels are kept for one run of the tests only, not in the user's folders. Tests on a GPU are skipped where
there is none."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def triton_cache(tmp_path_factory):
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))


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
