"""What a stopwatch decides: the seconds of a step, the number of threads and the number format of a study."""

import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.config.names import Precision
from ltmsearch.engine.runtime import Runtime, has_bf16, synchronize
from ltmsearch.errors import check_choice

GAIN = 1.1
"""A choice that needs more of the machine, or other hardware, must be measured this many times as fast."""
ROUNDS, MOST_ROUNDS = 3, 7
"""Steps of each candidate: at least, and while `MEASURING_SECONDS` are not over at most."""
MEASURING_SECONDS = 1.0
HOPELESS = 2.0
"""A candidate whose first step takes this many times as long as the fastest is measured no further."""
THREADS_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user sets the threads of torch."""

Key = TypeVar("Key", bound=Hashable)


@contextmanager
def repeated_step(
    runtime: Runtime, model: nn.Module, images: Tensor, *, train: bool = True
) -> Iterator[Callable[[], float]]:
    """A function that takes one step and returns its wall time in seconds; the model is restored afterwards.

    A step is a forward pass of (B, 3, height, width) images, with `train` also backward, without an optimizer. The
    model is moved to the device; its weights, buffers and mode are restored, and the random numbers that it draws are
    not taken from those of the study, as the number of steps depends on their time.
    """
    was_training = model.training
    runtime.prepare(model).train(train)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = runtime.images(images)
    labels = torch.zeros(len(batch), dtype=torch.long, device=batch.device)

    def step() -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(train), runtime.autocast():
            loss = F.cross_entropy(model(batch), labels)
        if train:
            loss.backward()
        synchronize(runtime.device)
        return time.perf_counter() - start

    try:
        with torch.random.fork_rng(devices=[runtime.device] if runtime.device.type == "cuda" else []):
            yield step
    finally:
        model.zero_grad(set_to_none=True)
        model.load_state_dict(buffers, strict=False)
        model.train(was_training)


def step_seconds(runtime: Runtime, model: nn.Module, images: Tensor, *, train: bool = True) -> float:
    """Seconds of one step as in `repeated_step`: the fastest of three after a warm-up."""
    with repeated_step(runtime, model, images, train=train) as step:
        step()
        return min(step() for _ in range(3))


def compare(candidates: Mapping[Key, Callable[[], float]]) -> dict[Key, float]:
    """Median seconds of each candidate, a function that runs once and returns its seconds.

    Candidates take turns, so that other load on the machine meets all of them alike, and the median of several turns
    hides what meets one. After a warm-up, those that are `HOPELESS` get no further turn.
    """
    for run in candidates.values():
        run()
    seconds = {key: [run()] for key, run in candidates.items()}
    bound = HOPELESS * min(first for (first,) in seconds.values())
    hopeful = [key for key, (first,) in seconds.items() if first <= bound]
    start = time.perf_counter()
    for turn in range(1, MOST_ROUNDS if len(hopeful) > 1 else 1):
        if turn >= ROUNDS and time.perf_counter() - start > MEASURING_SECONDS:
            break
        for key in hopeful:
            seconds[key].append(candidates[key]())
    return {key: statistics.median(values) for key, values in seconds.items()}


def threads_requested() -> bool:
    """Whether the user has set the threads of torch by an environment variable."""
    return any(os.environ.get(name) for name in THREADS_VARIABLES)


def thread_choices(most: int) -> list[int]:
    """The numbers of threads that are measured: one, half of the most, and the most."""
    return sorted({1, max(1, most // 2), most})


def choose_threads(runtime: Runtime, model: nn.Module, images: Tensor) -> tuple[int, str]:
    """Choose the number of threads on a CPU: the fewest with which a training step is nearly as fast as with any.

    Threads wait for each other, so on a machine that is busy, or whose CPUs are shares of CPUs, all of them can be many
    times slower than one. At most torch's current number is used, and exactly this number if the user has set
    one of `THREADS_VARIABLES`.

    Returns:
        The number, which is set already, and the reason in one phrase.
    """
    most = torch.get_num_threads()
    if threads_requested():
        return most, "as requested"
    if most == 1:
        return 1, "all that torch uses"
    with repeated_step(runtime, model, images) as step:

        def with_threads(number: int) -> Callable[[], float]:
            def run() -> float:
                torch.set_num_threads(number)
                return step()

            return run

        try:
            seconds = compare({number: with_threads(number) for number in thread_choices(most)})
        finally:
            torch.set_num_threads(most)
    chosen = fewest_threads(seconds)
    torch.set_num_threads(chosen)
    others = [f"{number} measured {seconds[chosen] / each:.2g}x as fast" for number, each in seconds.items()]
    return chosen, ", ".join(text for number, text in zip(seconds, others, strict=True) if number != chosen)


def fewest_threads(seconds: Mapping[int, float]) -> int:
    """The fewest threads than which no other number is `GAIN` times as fast."""
    return min(number for number, each in seconds.items() if each <= GAIN * min(seconds.values()))


def choose_runtime(
    device: torch.device, precision: Precision, model: nn.Module, images: Tensor, *, train: bool
) -> Runtime:
    """Choose the number format: `auto` is bf16 if the hardware supports it and a step is 1.1 times as fast.

    Steps of the model on a typical batch are measured if needed; its weights and buffers are restored.

    Args:
        train: Measure training steps; else forward passes, where bf16 may be worth more.
    """
    check_choice("the precision", precision, Precision)

    def runtime(bf16: bool, reason: str) -> Runtime:
        return Runtime(device=device, dtype=torch.bfloat16 if bf16 else torch.float32, reason=reason)

    if precision != "auto":
        return runtime(precision == "bf16", "as requested")
    if not has_bf16(device):
        return runtime(False, "no bf16 instructions")
    with (
        repeated_step(runtime(False, ""), model, images, train=train) as fp32,
        repeated_step(runtime(True, ""), model, images, train=train) as bf16,
    ):
        seconds = compare({False: fp32, True: bf16})
    gain = seconds[False] / seconds[True]
    return runtime(gain >= GAIN, f"bf16 measured {gain:.1f}x as fast")
