"""Files stay whole: interrupted writes, full disks, damaged JSON."""

import json
import os
from pathlib import Path
from unittest import mock

import pytest

from minifork.storage import files


def everything(folder: Path) -> set[str]:
    """Relative paths of all files, hidden ones included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


ERRORS = {
    OSError(28, "No space left on device"): "No space left on device",
    KeyboardInterrupt(): None,  # of these the type stays
    ValueError("not about the disk"): None,
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, error):
    path, reason = tmp_path / "deep" / "file.bin", ERRORS[error]
    files.write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=error))
    with pytest.raises(OSError if reason else type(error)) as raised:
        files.write_atomically(path, b"new")
    if reason:
        assert str(raised.value).startswith(f"{path}: cannot be saved ({reason}); ") and "\n" not in str(raised.value)
    assert path.read_bytes() == b"old" and everything(tmp_path) == {"deep/file.bin"}


def test_the_new_file_appears_only_when_whole(tmp_path, monkeypatch):
    path, replace = tmp_path / "file.bin", os.replace
    path.write_bytes(b"old")

    def checked(source: str, target: Path) -> None:
        assert path.read_bytes() == b"old" and Path(source).read_bytes() == b"new"
        replace(source, target)

    monkeypatch.setattr(os, "replace", checked)
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and everything(tmp_path) == {"file.bin"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    path = tmp_path / "file" / "run.json"
    for write in (files.write_json, files.append_line):
        with pytest.raises(OSError, match=f"{path}: cannot be saved"):
            write(path, {})


def test_json(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": [1, 2.5, None, True]})
    with pytest.raises(ValueError, match=r"x\.json: a result is not a number"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == files.read_json(path, "a") == {"a": [1, 2.5, None, True]}
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        files.read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", ["", '{"a": 1', "\xff", "[]", "null", '{"b": 1}'])
def test_what_is_no_json_mapping_with_these_keys(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"x\.json: not a JSON file that this version wrote"):
        files.read_json(path, "a")


def test_lines_are_appended(tmp_path):
    lines = [{"step": 1}, {"step": 2}]
    for line in lines:
        files.append_line(tmp_path / "log", line)
    assert [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()] == lines


def test_fingerprints():
    assert files.fingerprint({"a": 1, "b": [2]}) == files.fingerprint({"b": [2], "a": 1})
    values = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": True}, {"b": 1}, ["a", 1], None]
    assert len({files.fingerprint(value) for value in values}) == len(values)


def test_a_seal_shows_an_edit(tmp_path):
    path = tmp_path / "result.json"
    files.write_sealed_json(path, {"value": 0.1, 1: [1, 2]})
    result = files.read_json(path)
    assert files.is_sealed(result) and not files.is_sealed({"value": 0.1})
    assert not files.is_sealed(result | {"value": 0.2}) and not files.is_sealed(result | {"more": 1})
