"""The host twin, compiled once for all tests of the kernel."""

import shutil

import pytest

from tests.helpers.host_twin import Twin


@pytest.fixture(scope="session")
def twin(tmp_path_factory) -> Twin:
    if not shutil.which("g++"):
        pytest.skip("the host twin needs g++")
    return Twin(tmp_path_factory.mktemp("twin"))
