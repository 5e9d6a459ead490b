"""Latency targets: validation and description."""

import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.profiles import FAR

from ltmsearch.errors import InputError
from ltmsearch.latency import LatencyTarget
from ltmsearch.latency.target import hardware_name


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.latency.target.os.cpu_count", lambda: 4)


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether the machine has bf16 instructions."""
    return lambda has: monkeypatch.setattr("ltmsearch.latency.target.has_bf16", lambda _: has)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.latency.target.find_device", lambda _: torch.device("cuda:1"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU at {device}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"runtime": "tensorrt"},
            "the runtime of a latency target must be torch, .*, but got 'tensorrt'",
        ),
        ({"dtype": "int8"}, "the dtype of a latency target must be fp32, bf16, fp16, but got 'int8'"),
        (
            {"memory_format": "nhwc"},
            "the memory format of a latency target must be channels_last, .*, but got 'nhwc'",
        ),
        (
            {"threads": 0},
            "the threads of a latency target must be from 1 to 4, the number .*, but got 0",
        ),
        ({"threads": 5}, "from 1 to 4, the number of CPUs of this machine, but got 5"),
        ({"dtype": "fp16"}, "fp16 needs a GPU, .*; use fp32 or bf16"),
        (
            {"runtime": "onnxruntime", "dtype": "bf16"},
            "onnxruntime needs fp32 on the CPU, but got bf16 on cpu",
        ),
        ({"device": "gpu"}, "`--device` must be auto, cpu or cuda, but got 'gpu'"),
        ({"batch_size": 0}, "batch_size"),
        ({"img_size": 16}, "img_size"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
@pytest.mark.usefixtures("four_cpus")
def test_unsupported_cpu_targets_are_refused(
    options: dict[str, Any], message: str, bf16: Callable[[bool], None]
) -> None:
    bf16(True)
    with pytest.raises(InputError, match=message) as caught:
        LatencyTarget.local(**{"device": "cpu", **options})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_unsupported_gpu_targets_are_refused(bf16: Callable[[bool], None]) -> None:
    bf16(False)
    for options, message in (
        ({"threads": 1}, "the threads of a latency target must be omitted on a GPU, but got 1"),
        ({"runtime": "onnxruntime"}, "onnxruntime needs fp32 on the CPU, but got fp32 on cuda:1"),
        ({"dtype": "bf16"}, "bf16 needs bf16 instructions, which cuda:1 lacks"),
    ):
        with pytest.raises(InputError, match=message):
            LatencyTarget.local(**options)  # type: ignore[arg-type]
    target = LatencyTarget.local(dtype="fp16", batch_size=64)
    assert (target.device, target.hardware, target.threads) == ("cuda:1", "GPU at cuda:1", None)
    torch_version = target.versions["torch"]
    assert str(target).startswith(f"GPU at cuda:1; torch (torch {torch_version}, timm ")
    assert str(target).endswith("), fp16, channels last; batch 64 at 224 px")


def test_bf16_needs_bf16_instructions(bf16: Callable[[bool], None]) -> None:
    bf16(False)
    with pytest.raises(InputError, match="bf16 needs bf16 instructions, which cpu lacks; use fp32"):
        LatencyTarget.local(device="cpu", dtype="bf16")
    bf16(True)
    assert LatencyTarget.local(device="cpu", dtype="bf16").dtype == "bf16"


@pytest.mark.usefixtures("four_cpus")
def test_description_of_a_cpu_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.latency.target.hardware_name", lambda _: "A CPU")
    one = LatencyTarget.local(device="cpu")
    assert one.threads == 1
    assert str(one).startswith("A CPU, 1 thread; torch (torch ")
    assert "ltmsearch" not in str(one), "beside the libraries that run the net it says nothing"
    assert set(one.versions) == {"ltmsearch", "torch", "timm"}
    four = LatencyTarget.local(device="cpu", threads=4, memory_format="contiguous", batch_size=8, img_size=96)
    assert str(four).startswith("A CPU, 4 threads; torch (torch ")
    assert str(four).endswith("), fp32, contiguous; batch 8 at 96 px")
    assert one.differences(four) == [
        "threads 1 and 4", "memory_format 'channels_last' and 'contiguous'", "batch_size 1 and 8",
        "img_size 224 and 96",
    ]  # fmt: skip
    assert one.differences(LatencyTarget.local(device="cpu")) == []


def test_onnxruntime_targets_are_contiguous() -> None:
    target = LatencyTarget.local(device="cpu", runtime="onnxruntime")
    assert set(target.versions) == {"ltmsearch", "torch", "timm", "onnxruntime"}
    assert target.memory_format == "contiguous"
    assert target == LatencyTarget.local(device="cpu", runtime="onnxruntime", memory_format="contiguous")


def test_missing_onnx_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.programs.onnx.find_spec", lambda _: None)
    with pytest.raises(InputError, match="onnxruntime"):
        LatencyTarget.local(device="cpu", runtime="onnxruntime")


def test_hardware_name_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "cpuinfo"
    monkeypatch.setattr("ltmsearch.latency.target.Path", lambda _: about)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpu = torch.device("cpu")
    assert hardware_name(cpu) == "aarch64", "no such file, and nothing better known"
    about.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert hardware_name(cpu) == "aarch64", "a file without a name"
    about.write_text("processor\t: 0\nmodel name\t: A CPU @ 2.0: GHz \nprocessor\t: 1\nmodel name\t: Another\n")
    assert hardware_name(cpu) == "A CPU @ 2.0: GHz"


def test_differences_to_this_machine() -> None:
    here = LatencyTarget.local(device="cpu", batch_size=4, img_size=96, num_classes=10)
    assert here.differences_to_local() == []
    for change, message in (
        ({"hardware": "another"}, "hardware 'another' and "),
        ({"versions": {**here.versions, "torch": "0.1"}}, "versions .*'0.1'.* and "),
        ({"threads": 10_000}, "the threads of a latency target must be"),
        ({"dtype": "fp16"}, "fp16 needs a GPU"),
        ({"device": "cuda:99", "threads": None}, "cuda:99"),
    ):
        (difference,) = here.model_copy(update=change).differences_to_local()
        assert re.search(message, difference)
    assert FAR.differences_to_local()
