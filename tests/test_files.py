"""Whole files: what is written is there or what was there before, and every error is a sentence."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

import moe_colab as mc
from moe_colab import files
from moe_colab.files import read_file, read_json, write_file


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(*args):
    raise KeyboardInterrupt


@pytest.fixture
def trace():
    return mc.Trace.load().between(0, 2)


def save_page(folder: Path, trace) -> Path:
    return mc.xray(trace).save(folder / "page.html")


def save_picture(folder: Path, trace) -> Path:
    return mc.xray(trace).save(folder / "picture.png")


def save_trace(folder: Path, trace) -> Path:
    return trace.save(folder / "trace.npz")


SAVES = (save_page, save_picture, save_trace)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize(("name", "failure"), [("fsync", full), ("replace", full)])
def test_a_full_disk_leaves_the_old_file(save, name, failure, tmp_path, trace, monkeypatch):
    path = save(tmp_path, trace)
    old = path.write_bytes(b"an old file") and path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(mc.MoEColabError, match="No space left"):
        patch.setattr(files.os, name, failure)
        save(tmp_path, trace)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    assert save(tmp_path, trace).read_bytes() != old


def test_ctrl_c_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a.txt", b"old")
    monkeypatch.setattr(files.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_a_file_keeps_its_rights(tmp_path):
    target = write_file(tmp_path / "target", b"old")
    os.chmod(target, 0o640)
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(write_file(tmp_path / "x", b"").stat().st_mode) == 0o666 & ~umask


def test_a_device_is_written_to(tmp_path):
    assert write_file("/dev/null", b"x") == Path("/dev/null")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("name", ["no/folder.txt", "", "x" * 300, "a\0b"])
def test_what_cannot_be_written_is_named(tmp_path, name):
    with pytest.raises(mc.MoEColabError, match="cannot be") as caught:
        write_file(f"{tmp_path}/{name}", b"x")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", ".", "nowhere", "x" * 300, "a\0b", "\ud800", "../" * 3000):
        with pytest.raises(mc.MoEColabError) as caught:
            read_file(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 40)  # takes no disk
    with pytest.raises(mc.MoEColabError, match="1,099,511,627,776 bytes"):
        read_json(tmp_path / "config.json", "a configuration")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"1" * 5000, b"\x00"]
)
def test_json_that_is_none_is_named(tmp_path, text):
    path = write_file(tmp_path / "a.json", text)
    with pytest.raises(mc.MoEColabError, match=r"a\.json is not a list of things") as caught:
        read_json(path, "a list of things")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
