"""The cores that a process may use, from its affinity and the quota of its container."""

import os

import pytest

from minifork import cores as module
from minifork.cores import cores


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, 4), ("max 100000\n", 4), ("150000 100000\n", 2), ("900000 100000\n", 4), ("damaged", 4)],
)
def test_quotas(tmp_path, monkeypatch, content, expected):
    monkeypatch.setattr(module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    if content is not None:
        module.QUOTA.write_text(content, encoding="utf-8")
    assert cores() == expected
