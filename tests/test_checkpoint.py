"""The shared weights on disk."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from ltmsearch.checkpoint import SIDECAR, WEIGHTS, CheckpointState, load_checkpoint, save_checkpoint
from ltmsearch.errors import InputError

STATE = CheckpointState(class_names=["cat", "dög"], version=3, space="abc", trial=7, outcome={"top1": 50.0})


def test_round_trip_and_sidecar(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.arange(3), "c": torch.randn(4, 3).T}
    save_checkpoint(tmp_path, weights, STATE)
    loaded = load_checkpoint(tmp_path, space="abc")
    assert loaded is not None
    assert loaded[1] == STATE
    assert all(torch.equal(loaded[0][name], value) for name, value in weights.items())
    sidecar = json.loads((tmp_path / SIDECAR).read_text())
    assert sidecar["sha256"] == hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert sidecar["version"] == 3


def test_none_foreign_and_damaged(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, space="abc") is None
    save_checkpoint(tmp_path, {"a": torch.zeros(2)}, STATE)
    with pytest.raises(InputError, match=r"another search space \(abc, this one is xyz\)"):
        load_checkpoint(tmp_path, space="xyz")
    for content in (b"", b"garbage", (tmp_path / WEIGHTS).read_bytes()[:-1]):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(InputError, match="must be the shared weights"):
            load_checkpoint(tmp_path)
