"""Atomic writing: the previous file or the new one, and nothing else."""

import os
import stat
from pathlib import Path

import pytest

from ltmsearch.io.files import write_atomic

TEXT = "größe\r\nline two\n"


@pytest.mark.parametrize(
    "content",
    [TEXT, TEXT.encode(), lambda path: path.write_bytes(TEXT.encode())],
    ids=["text", "bytes", "callback"],
)
def test_every_form_of_content_writes_the_same_bytes(tmp_path: Path, content) -> None:
    assert write_atomic(tmp_path / "a.yaml", content) == tmp_path / "a.yaml"
    assert (tmp_path / "a.yaml").read_bytes() == TEXT.encode()
    assert os.listdir(tmp_path) == ["a.yaml"]


def test_a_callback_gets_a_path_with_the_same_ending(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(path: Path) -> None:
        seen.append(path)
        path.write_text("x")

    write_atomic(tmp_path / "model.safetensors", write)
    assert seen[0].parent.samefile(tmp_path)
    assert seen[0].suffix == ".safetensors"
    assert seen[0].name != "model.safetensors"


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "front.csv"
    target.write_text("old")

    def fail_half_way(path: Path) -> None:
        path.write_text("ha")
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        write_atomic(target, fail_half_way)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["front.csv"]


def test_a_callback_that_writes_nothing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "a.txt", lambda path: None)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permission bits and links")
def test_permissions_are_usual_and_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_atomic(tmp_path / "atomic", "x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]

    (tmp_path / "link").symlink_to(tmp_path / "plain")
    write_atomic(tmp_path / "link", "y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "plain").read_text() == "y"
