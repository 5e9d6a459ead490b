"""Runners of networks in torch, `torch.compile` and onnxruntime."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ltmsearch.engine.runtime import keep_freed_memory
from ltmsearch.latency.measurement import Clock, NetworkRunner, get_clock
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.models import blank_image
from ltmsearch.models.supernet import Supernet
from ltmsearch.programs import export_onnx, open_onnx
from ltmsearch.schedules.schedule import MergeSchedule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@contextmanager
def open_runner(target: LatencyTarget, supernet: Supernet, modules: Sequence[str] = ()) -> Iterator[NetworkRunner]:
    """Prepare a backbone for timing its subnets on a target of this machine, and only in torch its `modules`.

    The supernet, whose weights may be random, is converted to the target's device and number format.
    """
    supernet.eval().requires_grad_(False)
    image = blank_image(supernet.model, (target.img_size, target.img_size))
    images = torch.randn(target.batch_size, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    if target.runtime == "onnxruntime":
        with TemporaryDirectory() as folder:
            yield _OnnxRunner(supernet, images, Path(folder), target.threads or 1)
        return
    if target.device == "cpu":
        keep_freed_memory()  # as in training, so that profiles do not depend on which command makes them
    where: dict[str, Any] = {"device": target.device, "memory_format": FORMATS[target.memory_format]}
    supernet.to(dtype=DTYPES[target.dtype], **where)
    images = images.to(dtype=DTYPES[target.dtype], **where)
    if target.runtime == "compile":
        # torch counts all compiled networks of a class as recompilations of one, and stops after a few.
        limits = {"recompile_limit": 10_000, "accumulated_recompile_limit": 10_000}
        with torch._dynamo.config.patch(limits), warnings.catch_warnings(action="ignore", category=UserWarning):
            yield _CompiledRunner(supernet, images)
        return
    clock = get_clock(target.device, target.threads)
    with _time_modules(supernet.model, modules, clock) as times, ExitStack() as active:
        yield _TorchRunner(supernet, images, times, active)


class _TorchRunner:
    """Plain torch: one supernet whose schedule changes."""

    switches_fast = True

    def __init__(self, supernet: Supernet, images: Tensor, times: "_ModuleTimes", active: ExitStack) -> None:
        self._supernet, self._images, self._active = supernet, images, active
        self.module_times = times.take

    def load(self, schedule: MergeSchedule) -> Callable[[], object]:
        self._active.close()
        self._active.enter_context(self._supernet.active(schedule))
        return _forward(self._supernet.model, self._images)


class _CompiledRunner(NetworkRunner):
    """`torch.compile`: one compiled network per schedule, all with the same weights."""

    switches_fast = True

    def __init__(self, supernet: Supernet, images: Tensor) -> None:
        self._supernet, self._images = supernet, images
        self._compiled: dict[MergeSchedule, Any] = {}

    def load(self, schedule: MergeSchedule) -> Callable[[], object]:
        if schedule not in self._compiled:
            net = self._supernet.extract(schedule)
            net.load_state_dict(self._supernet.model.state_dict(), strict=False, assign=True)
            self._compiled[schedule] = torch.compile(net.requires_grad_(False), dynamic=False)
        return _forward(self._compiled[schedule], self._images)


class _OnnxRunner(NetworkRunner):
    """onnxruntime: one file per schedule; the plain network and one other are open at a time."""

    switches_fast = False

    def __init__(self, supernet: Supernet, images: Tensor, folder: Path, threads: int) -> None:
        self._supernet, self._images, self._folder, self._threads = supernet, images, folder, threads
        self._files: dict[MergeSchedule, Path] = {}
        self._open: dict[MergeSchedule, Callable[[Tensor], Tensor]] = {}

    def load(self, schedule: MergeSchedule) -> Callable[[], object]:
        if schedule not in self._files:
            path = self._folder / f"{len(self._files)}.onnx"
            export_onnx(self._supernet.extract(schedule), path, img_size=self._images.shape[-1])
            self._files[schedule] = path
        if schedule not in self._open:
            self._open = {other: run for other, run in self._open.items() if not other.merging_layers}
            self._open[schedule] = open_onnx(self._files[schedule], threads=self._threads)
        run, images = self._open[schedule], self._images
        return lambda: run(images)


def _forward(net: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.inference_mode():
            return net(images)

    return run


class _ModuleTimes:
    """Times of modules, from a clock on a CPU and from events on a GPU."""

    def __init__(self, clock: Clock, on_gpu: bool) -> None:
        self._clock, self._on_gpu = clock, on_gpu
        self._pairs: dict[str, list[tuple[Any, Any]]] = {}
        self._started: dict[str, Any] = {}

    def _now(self) -> Any:
        if not self._on_gpu:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self, name: str) -> None:
        self._started[name] = self._now()

    def stop(self, name: str) -> None:
        self._pairs.setdefault(name, []).append((self._started.pop(name), self._now()))

    def take(self) -> dict[str, list[float]]:
        """Return milliseconds since the last call, by module."""
        pairs, self._pairs = self._pairs, {}
        if self._on_gpu:
            torch.cuda.synchronize()
            return {name: [a.elapsed_time(b) for a, b in events] for name, events in pairs.items()}
        return {name: [1e3 * (b - a) for a, b in seconds] for name, seconds in pairs.items()}


@contextmanager
def _time_modules(model: nn.Module, modules: Sequence[str], clock: Clock) -> Iterator[_ModuleTimes]:
    times = _ModuleTimes(clock, next(model.parameters()).is_cuda)
    with ExitStack() as hooks:
        for name in modules:
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: times.start(name)))
            hooks.enter_context(module.register_forward_hook(lambda *_, name=name: times.stop(name)))
        yield times
