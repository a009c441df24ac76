"""Compiled kernels are kept for one run of the tests only, not in the user's folders."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def triton_cache(tmp_path_factory):
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
