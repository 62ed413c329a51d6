"""The host twin, compiled once for all tests of the kernel, those of other processes included."""

import os
import shutil

import pytest

from tests.helpers.host_twin import Twin


@pytest.fixture(scope="session")
def twin(tmp_path_factory) -> Twin:
    if not shutil.which("g++"):
        pytest.skip("the host twin needs g++")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "twins"
    folder.mkdir(exist_ok=True)
    return Twin(folder)
