"""Nets ready to be timed, by what runs them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ltmsearch.engine.runtime import keep_freed_memory
from ltmsearch.latency.measurement import Clock, Stage, clock_of
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.models import attached_operators, blank_image
from ltmsearch.models.supernet import Supernet
from ltmsearch.programs import export_onnx, open_onnx
from ltmsearch.schedules.schedule import MergeSchedule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@contextmanager
def open_stage(target: LatencyTarget, supernet: Supernet, segments: Sequence[str] = ()) -> Iterator[Stage]:
    """Get a backbone ready to time its subnets on a target of this machine.

    Args:
        target: Where and how.
        supernet: With any weights; changed to fit the target.
        segments: Modules that are to be timed by themselves, where what runs the net allows it.
    """
    supernet.eval().requires_grad_(False)
    image = blank_image(supernet.model, (target.img_size, target.img_size))
    images = torch.randn(target.batch_size, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() if target.runtime == "onnxruntime" else nullcontext("") as folder:
        if target.runtime == "onnxruntime":
            yield _OnnxStage(supernet, images, Path(folder), target.threads or 1)
            return
        if target.device == "cpu":
            keep_freed_memory()  # as in training, so that a profile says the same whoever makes it
        _convert(supernet, target)
        images = images.to(target.device, DTYPES[target.dtype], memory_format=FORMATS[target.memory_format])
        if target.runtime == "compile":
            # torch counts the compiled nets of a class as recompilations of one, and gives up after a few.
            limits = {"recompile_limit": 10_000, "accumulated_recompile_limit": 10_000}
            with torch._dynamo.config.patch(limits), warnings.catch_warnings(action="ignore", category=UserWarning):
                yield _CompiledStage(supernet, images)
            return
        clock = clock_of(target.device, target.threads)
        with _timed(supernet.model, segments, clock) as times, ExitStack() as active:
            yield _TorchStage(supernet, images, times, active)


def _convert(supernet: Supernet, target: LatencyTarget) -> None:
    where: dict[str, Any] = {"device": target.device, "memory_format": FORMATS[target.memory_format]}
    supernet.to(dtype=DTYPES[target.dtype], **where)
    for operator in attached_operators(supernet.model, supernet.layers).values():
        operator.float()  # they compute their masks in fp32


class _TorchStage:
    """torch as it is: one net, told its schedule."""

    keeps_all = True

    def __init__(self, supernet: Supernet, images: Tensor, times: "_Times", active: ExitStack) -> None:
        self._supernet, self._images, self._times, self._active = supernet, images, times, active

    def ready(self, schedule: MergeSchedule) -> Callable[[], object]:
        """See `Stage.ready`."""
        self._active.close()
        self._active.enter_context(self._supernet.active(schedule))
        return _forward(self._supernet.model, self._images)

    def segments(self) -> dict[str, list[float]]:
        """See `Stage.segments`."""
        return self._times.take()


class _CompiledStage:
    """`torch.compile`: a compiled net for every schedule, all with the same weights."""

    keeps_all = True

    def __init__(self, supernet: Supernet, images: Tensor) -> None:
        self._supernet, self._images = supernet, images
        self._compiled: dict[MergeSchedule, Any] = {}

    def ready(self, schedule: MergeSchedule) -> Callable[[], object]:
        """See `Stage.ready`."""
        if schedule not in self._compiled:
            net = self._supernet.extract(schedule)
            net.load_state_dict(self._supernet.model.state_dict(), strict=False, assign=True)
            self._compiled[schedule] = torch.compile(net.requires_grad_(False), dynamic=False)
        return _forward(self._compiled[schedule], self._images)

    def segments(self) -> dict[str, list[float]]:
        """None: a compiled net has no parts."""
        return {}


class _OnnxStage:
    """onnxruntime: a file for every schedule, the plain net and one other open at a time."""

    keeps_all = False

    def __init__(self, supernet: Supernet, images: Tensor, folder: Path, threads: int) -> None:
        self._supernet, self._images, self._folder, self._threads = supernet, images, folder, threads
        self._files: dict[MergeSchedule, Path] = {}
        self._open: dict[MergeSchedule, Callable[[Tensor], Tensor]] = {}

    def ready(self, schedule: MergeSchedule) -> Callable[[], object]:
        """See `Stage.ready`."""
        if schedule not in self._files:
            path = self._folder / f"{len(self._files)}.onnx"
            export_onnx(self._supernet.extract(schedule), path, img_size=self._images.shape[-1])
            self._files[schedule] = path
        if schedule not in self._open:
            for other in [known for known in self._open if known.merging_layers]:
                del self._open[other]
            self._open[schedule] = open_onnx(self._files[schedule], threads=self._threads)
        run, images = self._open[schedule], self._images
        return lambda: run(images)

    def segments(self) -> dict[str, list[float]]:
        """None: an exported net has no parts."""
        return {}


def _forward(net: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.inference_mode():
            return net(images)

    return run


class _Times:
    """Times of modules, from stamps before and after each: of a clock on a CPU, events on a GPU."""

    def __init__(self, clock: Clock, on_gpu: bool) -> None:
        self._clock, self._on_gpu = clock, on_gpu
        self._pairs: dict[str, list[tuple[Any, Any]]] = {}
        self._open: dict[str, Any] = {}

    def _stamp(self) -> Any:
        if not self._on_gpu:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self, name: str) -> None:
        self._open[name] = self._stamp()

    def end(self, name: str) -> None:
        self._pairs.setdefault(name, []).append((self._open.pop(name), self._stamp()))

    def take(self) -> dict[str, list[float]]:
        """Milliseconds since the last call, by module."""
        pairs, self._pairs = self._pairs, {}
        if self._on_gpu:
            torch.cuda.synchronize()
            return {name: [a.elapsed_time(b) for a, b in stamps] for name, stamps in pairs.items()}
        return {name: [1e3 * (b - a) for a, b in stamps] for name, stamps in pairs.items()}


@contextmanager
def _timed(model: nn.Module, modules: Sequence[str], clock: Clock) -> Iterator[_Times]:
    """Have modules timed in every run inside the `with` block."""
    times = _Times(clock, next(model.parameters()).is_cuda)
    handles = []
    for name in modules:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: times.begin(name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: times.end(name)))
    try:
        yield times
    finally:
        for handle in handles:
            handle.remove()
