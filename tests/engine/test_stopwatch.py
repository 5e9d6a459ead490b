"""What a stopwatch decides: from scripted times, and without a trace in the network."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ltmsearch.engine import stopwatch
from ltmsearch.engine.runtime import Runtime
from ltmsearch.engine.stopwatch import (
    MOST_ROUNDS,
    choose_runtime,
    choose_threads,
    compare,
    fewest_threads,
    step_seconds,
    thread_choices,
)

CPU = torch.device("cpu")
RUNTIME = Runtime(device=CPU, dtype=torch.float32, reason="test")


def scripted(seconds: list[float]) -> tuple[Callable[[], float], list[float]]:
    """A run that takes these seconds, the last ones for ever; and the seconds that it has told."""
    told: list[float] = []

    def run() -> float:
        told.append(seconds[min(len(told), len(seconds) - 1)])
        return told[-1]

    return run, told


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)
    ).eval()


def test_measuring_a_step_leaves_no_trace() -> None:
    model = net()
    before, numbers = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    assert step_seconds(RUNTIME, model, torch.randn(2, 3, 8, 8, generator=torch.Generator())) > 0
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), numbers), "drop path would depend on the number of timed steps"


def test_the_median_hides_the_first_run_and_what_meets_one_turn() -> None:
    (steady, told), (met, _) = scripted([90.0, 1.0]), scripted([1.0, 0.8, 70.0, 0.8])
    assert compare({"steady": steady, "met": met}) == {"steady": 1.0, "met": 0.8}
    assert len(told) == 1 + MOST_ROUNDS


def test_what_is_hopeless_is_not_measured_again() -> None:
    (fast, _), (slow, told) = scripted([1.0]), scripted([1.0, 30.0])
    assert compare({1: fast, 2: slow}) == {1: 1.0, 2: 30.0}
    assert len(told) == 2


@pytest.mark.parametrize(
    ("seconds", "fewest"),
    [
        ({1: 1.0, 2: 0.95}, 1),
        ({1: 1.0, 2: 9.0}, 1),
        ({1: 2.0, 2: 1.05, 4: 1.0}, 2),
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),
    ],
)
def test_more_threads_must_pay(seconds: dict[int, float], fewest: int) -> None:
    assert fewest_threads(seconds) == fewest


@pytest.mark.parametrize(("most", "choices"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (8, [1, 4, 8])])
def test_one_half_and_all_threads_are_tried(most: int, choices: list[int]) -> None:
    assert thread_choices(most) == choices


def test_the_measured_number_of_threads_is_set(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    threads(2)
    seconds = {1: 1.0, 2: 8.0}
    monkeypatch.setattr(stopwatch, "compare", lambda candidates: {number: seconds[number] for number in candidates})
    images = torch.randn(2, 3, 8, 8)
    assert choose_threads(RUNTIME, net(), images) == (1, "2 measured 0.12x as fast")
    assert torch.get_num_threads() == 1
    assert choose_threads(RUNTIME, net(), images) == (1, "all that torch uses")


def test_each_candidate_runs_with_its_threads(threads: Callable[[int], None]) -> None:
    threads(2)
    seen: list[int] = []
    model = net()
    model[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    choose_threads(RUNTIME, model, torch.randn(2, 3, 8, 8))
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_that_the_user_sets_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None], name: str
) -> None:
    threads(2)
    monkeypatch.setenv(name, "2")
    monkeypatch.setattr(stopwatch, "compare", None)
    assert choose_threads(RUNTIME, net(), torch.randn(2, 3, 8, 8)) == (2, "as requested")


@pytest.mark.parametrize("train", [True, False])
def test_precision_follows_the_user_and_the_hardware(monkeypatch: pytest.MonkeyPatch, train: bool) -> None:
    model, images = net(), torch.randn(2, 3, 8, 8)
    assert choose_runtime(CPU, "bf16", model, images, train=train).dtype == torch.bfloat16
    assert choose_runtime(CPU, "fp32", model, images, train=train).dtype == torch.float32
    monkeypatch.setattr(stopwatch, "has_bf16", lambda _: False)
    assert choose_runtime(CPU, "auto", model, images, train=train).dtype == torch.float32
    monkeypatch.setattr(stopwatch, "has_bf16", lambda _: True)
    for slower, wanted in ((2.0, torch.bfloat16), (1.05, torch.float32)):
        monkeypatch.setattr(stopwatch, "compare", lambda _, fp32=slower: {False: fp32, True: 1.0})
        assert choose_runtime(CPU, "auto", model, images, train=train).dtype == wanted


@pytest.mark.parametrize("train", [True, False])
def test_precision_is_chosen_by_the_steps_that_it_is_for(monkeypatch: pytest.MonkeyPatch, train: bool) -> None:
    model, images, seen = net(), torch.randn(2, 3, 8, 8), set()
    model[0].register_forward_hook(lambda module, _, out: seen.add((module.training, out.requires_grad)))
    monkeypatch.setattr(stopwatch, "has_bf16", lambda _: True)
    choose_runtime(CPU, "auto", model, images, train=train)
    assert seen == {(train, train)}
