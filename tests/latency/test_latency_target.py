"""The target of a latency: refused where this machine cannot do it, told in one line."""

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
from ltmsearch.latency.study import differences_here
from ltmsearch.latency.target import hardware_name, target_file_name


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.latency.target.os.cpu_count", lambda: 4)


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Gives the machine bf16 instructions, or takes them."""
    return lambda has: monkeypatch.setattr("ltmsearch.latency.target.has_bf16", lambda _: has)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.latency.target.find_device", lambda _: torch.device("cuda:1"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU at {device}")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"runtime": "tensorrt"}, "the runtime of a latency must be torch, compile, onnxruntime, but got 'tensorrt'"),
        ({"dtype": "int8"}, "the dtype of a latency must be fp32, bf16, fp16, but got 'int8'"),
        ({"memory_format": "nhwc"}, "the memory format of a latency must be channels_last, contiguous, but got 'nhwc'"),
        ({"threads": 0}, "the threads of a latency must be from 1 to 4, the CPUs of this machine, but got 0"),
        ({"threads": 5}, "from 1 to 4, the CPUs of this machine, but got 5"),
        ({"threads": -1}, "but got -1"),
        ({"dtype": "fp16"}, "fp16 is not measured on a CPU, .*; fp32 or bf16 would do"),
        (
            {"runtime": "onnxruntime", "dtype": "bf16"},
            "onnxruntime is measured in fp32 on the CPU, but got bf16 on cpu",
        ),
        ({"runtime": "onnxruntime", "dtype": "fp16"}, "onnxruntime is measured in fp32 on the CPU, but got fp16"),
        ({"device": "gpu"}, "--device 'gpu' cannot be used"),
        ({"batch_size": 0}, "batch_size"),
        ({"img_size": 16}, "img_size"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
@pytest.mark.usefixtures("four_cpus")
def test_what_a_cpu_cannot_do_is_refused_in_one_line(
    asked: dict[str, Any], message: str, bf16: Callable[[bool], None]
) -> None:
    bf16(True)
    with pytest.raises(InputError, match=message) as caught:
        LatencyTarget.here(**{"device": "cpu", **asked})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_what_a_gpu_cannot_do_is_refused(bf16: Callable[[bool], None]) -> None:
    bf16(False)
    for asked, message in (
        ({"threads": 1}, "the threads of a latency must be left out on a GPU, but got 1"),
        ({"runtime": "onnxruntime"}, "onnxruntime is measured in fp32 on the CPU, but got fp32 on cuda:1"),
        ({"dtype": "bf16"}, "cuda:1 has no bf16 instructions"),
    ):
        with pytest.raises(InputError, match=message):
            LatencyTarget.here(**asked)  # type: ignore[arg-type]
    target = LatencyTarget.here(dtype="fp16", batch_size=64)
    assert (target.device, target.hardware, target.threads) == ("cuda:1", "GPU at cuda:1", None)
    torch_version = target.versions["torch"]
    assert str(target).startswith(f"GPU at cuda:1; torch (torch {torch_version}, timm ")
    assert str(target).endswith("), fp16, channels last; batch 64 at 224 px")


def test_bf16_without_instructions_is_refused_and_with_them_it_is_not(bf16: Callable[[bool], None]) -> None:
    bf16(False)
    with pytest.raises(InputError, match="cpu has no bf16 instructions: emulated, .*; fp32 would do"):
        LatencyTarget.here(device="cpu", dtype="bf16")
    bf16(True)
    assert LatencyTarget.here(device="cpu", dtype="bf16").dtype == "bf16"


@pytest.mark.usefixtures("four_cpus")
def test_a_cpu_is_told_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.latency.target.hardware_name", lambda _: "A CPU")
    one = LatencyTarget.here(device="cpu")
    assert one.threads == 1
    assert str(one).startswith("A CPU, 1 thread; torch (torch ")
    assert "ltmsearch" not in str(one), "beside the libraries that run the net it says nothing"
    assert set(one.versions) == {"ltmsearch", "torch", "timm"}
    four = LatencyTarget.here(device="cpu", threads=4, memory_format="contiguous", batch_size=8, img_size=96)
    assert str(four).startswith("A CPU, 4 threads; torch (torch ")
    assert str(four).endswith("), fp32, contiguous; batch 8 at 96 px")
    assert target_file_name(four) == "96px-b8-torch-fp32-cpu"
    assert one.differences(four) == [
        "threads 1 and 4", "memory_format 'channels_last' and 'contiguous'", "batch_size 1 and 8",
        "img_size 224 and 96",
    ]  # fmt: skip
    assert one.differences(LatencyTarget.here(device="cpu")) == []


def test_onnxruntime_is_part_of_its_own_versions_and_lies_contiguous() -> None:
    target = LatencyTarget.here(device="cpu", runtime="onnxruntime")
    assert set(target.versions) == {"ltmsearch", "torch", "timm", "onnxruntime"}
    assert target.memory_format == "contiguous"
    assert target == LatencyTarget.here(device="cpu", runtime="onnxruntime", memory_format="contiguous")


def test_onnxruntime_without_its_libraries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.programs.onnx.find_spec", lambda _: None)
    with pytest.raises(InputError, match="onnxruntime"):
        LatencyTarget.here(device="cpu", runtime="onnxruntime")


def test_the_hardware_says_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_target_is_here_only_if_nothing_has_changed() -> None:
    here = LatencyTarget.here(device="cpu", batch_size=4, img_size=96, num_classes=10)
    assert differences_here(here) == []
    for change, told in (
        ({"hardware": "another"}, "hardware 'another' and "),
        ({"versions": {**here.versions, "torch": "0.1"}}, "versions .*'0.1'.* and "),
        ({"threads": 10_000}, "the threads of a latency must be"),
        ({"dtype": "fp16"}, "fp16 is not measured on a CPU"),
        ({"device": "cuda:99", "threads": None}, "cuda:99"),
    ):
        (difference,) = differences_here(here.model_copy(update=change))
        assert re.search(told, difference)
    assert differences_here(FAR)
