"""Atomic writing: the previous file or the new one, and nothing else."""

import errno
import os
import stat
from pathlib import Path

import pytest

from ltmsearch.errors import InputError
from ltmsearch.io.files import MAX_NAME_BYTES, refuse_unwritable, safe_name, write_atomic

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
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


class TestUnwritable:
    @pytest.mark.parametrize(
        ("folder", "reason"),
        [
            ("file", "it is a file"),
            ("file/below", "Not a directory: .*file"),
            ("n" * 300, "File name too long"),
            ("new/" + "ü" * 200, "File name too long"),
            pytest.param("/dev/null/below", "Not a directory: /dev/null"),
            pytest.param("/proc/new", "its file system accepts no new files", marks=NEEDS_PROC),
            pytest.param("/proc/self/fd/new", "its file system accepts no new files", marks=NEEDS_PROC),
        ],
    )
    def test_folders_are_refused_in_one_line(
        self, tmp_path: Path, folder: str, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("file").write_text("in the way")
        with pytest.raises(InputError, match=f"^the folder {folder} cannot be written: {reason}$"):
            refuse_unwritable(Path(folder), "the folder")
        assert os.listdir(tmp_path) == ["file"]

    def test_a_file_system_that_is_read_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Even where rights allow writing, as for root."""

        def read_only(*_: object, **__: object) -> int:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(os, "open", read_only)
        with pytest.raises(InputError, match="cannot be written: Read-only file system$"):
            refuse_unwritable(tmp_path / "run", "the folder")

    @pytest.mark.parametrize("folder", [".", "new", "new/and/deep", "line\nbreak"])
    def test_nothing_is_left_in_others(self, tmp_path: Path, folder: str) -> None:
        refuse_unwritable(tmp_path / folder, "the folder")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("my study/4", "my-study-4"),
        ("../..", "-.."),
        ("..hidden", "hidden"),
        ("a\nb\x1b[31m", "a-b--31m"),
        ("größe_1.2", "größe_1.2"),
        ("x" * 300, "x" * MAX_NAME_BYTES),
        ("x" + "ü" * 300, "x" + "ü" * ((MAX_NAME_BYTES - 1) // 2)),  # no half letter
        ("...", ""),
    ],
)
def test_names_made_from_text_are_safe(text: str, name: str) -> None:
    assert safe_name(text) == name
