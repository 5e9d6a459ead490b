"""The shared weights on disk."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltmsearch.errors import InputError
from ltmsearch.search.checkpoint import (
    PREVIOUS,
    SIDECAR,
    WEIGHTS,
    CheckpointState,
    load_checkpoint,
    load_previous,
    save_checkpoint,
)

STATE = CheckpointState(class_names=["cat", "dög"], version=3, scored=4, space="abc", trial=7, outcome={"top1": 50.0})


def test_round_trip_and_sidecar(tmp_path: Path) -> None:
    weights = {
        "a": torch.randn(3, 4), "b": torch.arange(3), "c": torch.randn(4, 3).T, "d": torch.tensor(5),
        "e": torch.randn(2).bfloat16(),
    }  # fmt: skip
    save_checkpoint(tmp_path, weights, STATE)
    loaded = load_checkpoint(tmp_path, space="abc")
    assert loaded is not None
    assert loaded.state == STATE
    assert all(torch.equal(loaded.weights[name], value) for name, value in weights.items())
    sidecar = json.loads((tmp_path / SIDECAR).read_text())
    total = hashlib.sha256()
    for name, value in sorted(weights.items()):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    assert sidecar["sha256"] == total.hexdigest()
    assert sidecar["version"] == 3


def test_none_and_foreign(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, space="abc") is None
    save_checkpoint(tmp_path, {"a": torch.zeros(2)}, STATE)
    with pytest.raises(
        InputError, match=r"search space of this study \(xyz\), but belongs to another \(abc\): continue"
    ):
        load_checkpoint(tmp_path, space="xyz")


@pytest.mark.parametrize("links", [True, False])
def test_the_last_two_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    for version in range(3):
        assert load_previous(tmp_path) is None or version == 2
        save_checkpoint(tmp_path, {"a": torch.full((2,), float(version))}, replace(STATE, version=version))
    for load, version in ((load_checkpoint, 2), (load_previous, 1)):
        loaded = load(tmp_path, space="abc")
        assert loaded is not None
        assert loaded.state.version == loaded.weights["a"][0] == version
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, PREVIOUS, SIDECAR}
    (tmp_path / WEIGHTS).unlink()  # a crash between the renames, where a file system has no links
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.state.version == 1


def test_a_full_disk_leaves_both_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in range(2):
        save_checkpoint(tmp_path, {"a": torch.zeros(2)}, replace(STATE, version=version))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, {"a": torch.ones(2)}, replace(STATE, version=2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_flipped_bit_of_the_weights_is_noticed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"a": torch.randn(4), "b": torch.arange(3)}, STATE)
    whole = (tmp_path / WEIGHTS).read_bytes()
    begins = 8 + struct.unpack("<Q", whole[:8])[0]
    assert len(whole) - begins == 4 * 4 + 3 * 8
    for place in range(begins, len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (tmp_path / WEIGHTS).write_bytes(damaged)
            with pytest.raises(InputError, match="differ from those that were written"):
                load_checkpoint(tmp_path)


@pytest.mark.parametrize("known_before", [False, True])
def test_damage_is_reported_with_a_remedy(tmp_path: Path, known_before: bool) -> None:
    for _ in range(1 + known_before):
        save_checkpoint(tmp_path, {"a": torch.zeros(2)}, STATE)
    remedy = "continue from supernet.previous.safetensors" if known_before else "repeat the warm-up"
    for content in (b"", b"garbage", (tmp_path / WEIGHTS).read_bytes()[:-1]):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(InputError, match=f"must hold the shared weights.*; move it away to {remedy}"):
            load_checkpoint(tmp_path)
