"""Latency profiles: made of a real net, kept, found again, and refused where they do not fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import Notes
from support.nets import randomise
from support.profiles import FAR, costs_of, hand_made_profile, measurement, whole_space
from torch import Tensor

from ltmsearch.costs import WHOLE_NET, CostModel
from ltmsearch.errors import InputError
from ltmsearch.latency import (
    LatencyProfile,
    LatencyTarget,
    build_profile,
    find_profile,
    profile_path,
    subnets_to_time,
)
from ltmsearch.latency.measurement import NetworkRunner
from ltmsearch.latency.profile import TimedSubnet
from ltmsearch.latency.runtimes import open_runner
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Choice, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

XXS = "mobilevit_xxs"
FORMS = {"soft": 0.9, "hard": 0.4, "matched": 0.6}


def ms(name: str) -> float:
    """A made-up truth: milliseconds by a feature's name."""
    first, _, last = name.partition(" ")
    if first in FORMS:
        return FORMS[first] * {"work": 0.02, "tokens": 0.001}.get(last, 0.3)
    return {"tokens before": 0.01, "work before": 0.05, "work after": 0.04, "weighed": 0.08}[name]


@pytest.fixture(scope="module")
def made() -> LatencyProfile:
    return hand_made_profile(ms, base_ms=30.0)


@pytest.fixture(scope="module")
def target() -> LatencyTarget:
    return LatencyTarget.local(device="cpu", img_size=64, num_classes=10)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few subnets and runs as there can be."""
    for name, value in (("SECONDS", 0.0), ("FEWEST", 16), ("MOST", 16), ("ROUNDS", 1), ("PLAIN_SAMPLES", 1)):
        monkeypatch.setattr(f"ltmsearch.latency.build.{name}", value)
    monkeypatch.setattr("ltmsearch.latency.measurement.SAMPLE_SECONDS", 0.0)


# -- files ------------------------------------------------------------------------------------------------------------


def test_profile_round_trip(made: LatencyProfile, tmp_path: Path) -> None:
    subnet = TimedSubnet(keep_ratios={"a": 1 / 3}, forms={"a": "hard"}, reading=measurement(1 / 7), extra_ms={"": -0.1})
    profile = made.model_copy(update={"subnets": [subnet], "load": 0.1 + 0.2})
    path = profile.save(tmp_path / "not" / "there" / "yet.json")
    assert LatencyProfile.load_file(path) == profile
    again = LatencyProfile.load_file(path).save(tmp_path / "again.json")
    assert again.read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["yet.json"]
    assert subnet.schedule("ltm") == MergeSchedule(keep_ratios={"a": 1 / 3}, forms={"a": "hard"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "must be a latency profile made by `ltmsearch profile`"),
        (lambda text: "", "must be a latency profile"),
        (lambda text: "[1, 2]", "must be a latency profile"),
        (lambda text: "null", "must be a latency profile"),
        (lambda text: text.replace('"backbone"', '"backbon"'), "must be a latency profile"),
        (lambda text: text.replace('"runtime": "torch"', '"runtime": "java"'), "must be a latency profile"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema_version must be 1 .*got 2"),
        (lambda text: text.replace('"schema_version": 1,', ""), "schema_version must be 1 .*but got None"),
    ],
    ids=["cut", "empty", "list", "null", "name", "value", "schema", "no schema"],
)  # fmt: skip
def test_damaged_profiles_are_refused(
    made: LatencyProfile, tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    path = made.save(tmp_path / "mine.json")
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(InputError, match=f"mine.json.*{message}") as caught:
        LatencyProfile.load_file(path)
    assert "\n" not in str(caught.value)
    assert find_profile(path) is None, "a damaged file is made again"


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the latency profile .*none.json cannot be read: No such file"):
        LatencyProfile.load_file(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        LatencyProfile.load_file(tmp_path)
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(InputError, match="picture.json must be a latency profile"):
        LatencyProfile.load_file(tmp_path / "picture.json")
    assert find_profile(tmp_path / "none.json") is None
    assert find_profile(tmp_path / "picture.json") is None


def test_targets_keep_the_arguments_of_their_network(target: LatencyTarget) -> None:
    content = target.model_dump_json(exclude={"in_chans", "model_kwargs", "registers", "readout"})
    assert LatencyTarget.model_validate_json(content) == target, "profiles of earlier versions have none of these"
    listed = LatencyTarget.local(device="cpu", model_kwargs={"sizes": (1, 2)})
    assert LatencyTarget.model_validate_json(listed.model_dump_json()) == listed


def test_profile_of_another_study_is_refused(made: LatencyProfile, tmp_path: Path) -> None:
    fits = {"backbone": XXS, "operator": "ltm", "space": made.space, "img_size": 224}
    where = tmp_path / "mine.json"
    made.require(where, **fits)  # type: ignore[arg-type]
    for name, value, message in (
        ("backbone", "mobilevit_s", "of the backbone mobilevit_xxs, but the study's is mobilevit_s"),
        ("operator", "tome", "of the operator ltm, but the study's is tome"),
        ("img_size", 256, "of the image size 224, but the study's is 256"),
        ("in_chans", 1, "of the in_chans 3, but the study's is 1"),
        ("model_kwargs", {"depth": 3}, "of the model_kwargs {}, but the study's is {'depth': 3}"),
        ("registers", 2, "of the registers 0, but the study's is 2"),
        ("space", "0123", f"of the search space {made.space}, but the study's is 0123"),
    ):
        with pytest.raises(InputError, match=f"mine.json is a latency profile {message}") as caught:
            made.require(where, **{**fits, name: value})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_profile_path_depends_on_every_input(user_cache: Path) -> None:
    costs = costs_of(XXS, 224)
    space = whole_space(costs, XXS)
    other_space = replace(space, choices=(space.choices[0][:-1], *space.choices[1:]))
    target = FAR.model_copy(update={"runtime": "compile"})
    path = profile_path(XXS, "ltm", space, target)
    assert path.parent == user_cache / "ltmsearch" / "profiles"
    assert path.name.startswith("mobilevit_xxs-ltm-224px-b1-compile-fp32-")
    same = target.model_copy(update={"versions": dict(reversed(target.versions.items()))})
    assert profile_path(XXS, "ltm", whole_space(costs, XXS), same) == path
    changed: list[tuple[str, str, SearchSpace, LatencyTarget]] = [
        ("mobilevit_xs", "ltm", space, target), (XXS, "tome", space, target), (XXS, "ltm", other_space, target),
        *((XXS, "ltm", space, target.model_copy(update={name: value})) for name, value in {
            "device": "cuda", "hardware": "another", "threads": 2, "runtime": "torch", "dtype": "bf16",
            "memory_format": "contiguous", "batch_size": 8, "img_size": 256, "num_classes": 11,
            "in_chans": 1, "model_kwargs": {"depth": 3}, "registers": 1, "readout": "register",
            "versions": {"torch": "0.2"},
        }.items()),
    ]  # fmt: skip
    assert len(changed) == 3 + len(LatencyTarget.model_fields)
    paths = [profile_path(*arguments) for arguments in changed]
    assert len({path, *paths}) == 1 + len(changed)


# -- the fit and its check --------------------------------------------------------------------------------------------


def timed(costs: CostModel, space: SearchSpace, number: int, scatter: float = 0.0) -> list[TimedSubnet]:
    """Subnets that take what a made-up truth says, and a scattered share more or less."""
    model = hand_made_profile(ms, base_ms=30.0).model(costs)
    rng = np.random.default_rng(0)
    subnets = []
    for row in space.random(rng, number):
        schedule = space.schedule(row)
        took = model.latency_ms(schedule) * (1 + scatter * rng.normal())
        subnets.append(
            TimedSubnet(
                keep_ratios=dict(schedule.keep_ratios), forms=dict(schedule.forms), reading=measurement(took, 0.01),
                extra_ms={WHOLE_NET: took - 30.0},
            )
        )  # fmt: skip
    return subnets


ABOUT = {"backbone": XXS, "space": "s", "target": FAR, "load": 0.0, "seconds": 1.0}


def test_cross_validation_of_predictions() -> None:
    costs = costs_of(XXS, 224)
    space = whole_space(costs, XXS)
    profile = LatencyProfile.fitted(costs, measurement(30.0), timed(costs, space, 120), **ABOUT)
    assert profile.check.error < 2e-3
    assert profile.check.noise == pytest.approx(0.01)
    assert profile.check.subnets == 120
    assert (profile.operator, profile.plain.ms, profile.backbone) == ("ltm", 30.0, XXS)
    noisy = LatencyProfile.fitted(costs, measurement(30.0), timed(costs, space, 120, scatter=0.05), **ABOUT)
    assert noisy.check.error > 0.02, "it is not checked on what it was fitted to"
    model = profile.model(costs)
    truth = hand_made_profile(ms, base_ms=30.0).model(costs)
    uniform = MergeSchedule.uniform(costs.layers, 0.5, "ltm", "matched")
    assert model.latency_ms(uniform) == pytest.approx(truth.latency_ms(uniform), rel=2e-3)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_profile_of_few_choices(number: int, tmp_path: Path) -> None:
    """One layer, and each of its choices timed once: none can be held out, but all are known."""
    costs = costs_of(XXS, 224)
    truth = hand_made_profile(ms, base_ms=30.0).model(costs)
    choices = [Choice(ratio, "matched") for ratio in (0.85, 0.7, 0.5, 0.35)][:number]
    subnets = []
    for choice in choices:
        took = truth.cost_at_one_layer(costs.layers[0], choice)
        subnets.append(
            TimedSubnet(
                keep_ratios={costs.layers[0]: choice.keep_ratio}, forms={costs.layers[0]: choice.form or "matched"},
                reading=measurement(took), extra_ms={WHOLE_NET: took - 30.0},
            )
        )  # fmt: skip
    profile = LatencyProfile.fitted(costs, measurement(30.0), subnets, **ABOUT)
    model = profile.model(costs)
    for choice in choices:
        assert model.cost_at_one_layer(costs.layers[0], choice) == pytest.approx(
            truth.cost_at_one_layer(costs.layers[0], choice), rel=0.02
        )
    assert LatencyProfile.load_file(profile.save(tmp_path / "few.json")) == profile


@pytest.mark.parametrize(("number", "layers"), [(8, 9), (16, 2), (20, 2), (20, 1)])
@pytest.mark.parametrize("seconds", [0, 32, 50, 10_000], ids=lambda wanted: f"{wanted} subnets")
def test_every_choice_of_every_layer_is_timed(number: int, layers: int, seconds: int) -> None:
    """A choice that no subnet takes could not be predicted."""
    options = (Choice(1.0), *(Choice(1 - (i + 1) / (number + 2), "hard") for i in range(number)))
    space = SearchSpace(
        layers=tuple(f"blocks.{i}" for i in range(layers)), choices=(options,) * layers, layer_tokens=(49,) * layers
    )
    schedules = subnets_to_time(space, seconds)
    rows = np.array([space.indices(schedule) for schedule in schedules])
    assert len(np.unique(rows, axis=0)) == len(rows) <= 72
    assert rows.any(axis=1).all(), "the plain net is timed anyway"
    for column in rows.T:
        counts = np.bincount(column, minlength=number + 1)[1:]
        assert (counts > 0).all()
        if layers > 2:  # fewer are thinned out where rows are equal
            assert np.ptp(counts) <= 2
            assert 0.2 < np.mean(column == 0) < 0.45, "about a third stay plain"
    assert [space.indices(s).tolist() for s in subnets_to_time(space, seconds)] == rows.tolist()


def test_layer_without_choices_stays_plain() -> None:
    space = SearchSpace(layers=("a", "b"), choices=((Choice(1.0),), (Choice(1.0), Choice(0.5))), layer_tokens=(4, 4))
    assert [schedule.merging_layers for schedule in subnets_to_time(space, 40)] == [("b",)]


# -- real nets --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_profile_of_a_network_predicts_its_space(target: LatencyTarget) -> None:
    callbacks = Notes()
    random_state = torch.get_rng_state()
    profile = build_profile(XXS, "ltm", SpaceFile.load(None, family="mobilevit"), target, callbacks)
    assert torch.equal(torch.get_rng_state(), random_state), "no other numbers are drawn because nets were timed"
    costs = costs_of(XXS, 64)
    space = whole_space(costs, XXS)
    assert (profile.backbone, profile.operator, profile.space, profile.target) == (XXS, "ltm", space.digest(), target)
    number = len(profile.subnets)
    assert 10 <= number <= 16
    assert callbacks.lines[0].startswith(f"timing {number} subnets on {target}: about ")
    assert profile.plain.visits >= 3 + number
    assert all(subnet.reading.visits == 1 for subnet in profile.subnets)
    modules = {chain.module for chain in costs.chains}
    assert all(set(subnet.extra_ms) == modules for subnet in profile.subnets), "each chain is timed by itself"
    model = profile.model(costs)
    table = model.table(space.choices)
    rows = space.random(np.random.default_rng(0), 2_000)
    assert np.isfinite(table.costs(rows)).all()
    low, high = table.reachable()
    assert low < high
    assert model.base == profile.plain.ms > 0


@contextmanager
def runner_of(supernet: Supernet, **target: Any) -> Iterator[tuple[NetworkRunner, Tensor]]:
    """A runner, and the images that its nets see."""
    here = LatencyTarget.local(device="cpu", img_size=64, num_classes=10, batch_size=2, **target)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with open_runner(here, supernet, sorted({chain.module for chain in costs_of(XXS, 64).chains})) as runner:
        yield runner, images


def some_schedules(supernet: Supernet) -> list[MergeSchedule]:
    space = whole_space(costs_of(XXS, 64), XXS)
    drawn = [space.schedule(row) for row in space.random(np.random.default_rng(3), 3)]
    return [MergeSchedule.uniform(supernet.layers, 1.0), *drawn]


def logits_of_subnets(
    supernet: Supernet, schedules: list[MergeSchedule], images: Tensor
) -> dict[MergeSchedule, Tensor]:
    """By the nets that stand alone."""
    with torch.no_grad():
        return {schedule: supernet.extract(schedule).eval()(images) for schedule in schedules}


def supernet() -> Supernet:
    net = Supernet(XXS, num_classes=10, img_size=64)
    randomise(net)
    return net.eval()


def hooks_of(net: Supernet) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_torch_runner_runs_the_subnets(memory_format: str) -> None:
    net = supernet()
    schedules = some_schedules(net)
    hooks = hooks_of(net)
    with runner_of(net, memory_format=memory_format) as (runner, images):
        wanted = logits_of_subnets(net, schedules, images)
        assert runner.switches_fast
        for index in (0, 1, 2, 1, 3, 0, 3, 2):
            schedule = schedules[index]
            run = runner.load(schedule)
            for _ in range(2):
                logits = run()
                assert isinstance(logits, Tensor)
                torch.testing.assert_close(logits, wanted[schedule], atol=1e-5, rtol=1e-4)
        runner.module_times()
        run()
        run()
        module_times = runner.module_times()
        assert set(module_times) == {chain.module for chain in costs_of(XXS, 64).chains}
        assert all(len(times) == 2 and min(times) >= 0 for times in module_times.values()), "one for each run since"
        assert runner.module_times() == {}
    assert max((wanted[a] - wanted[b]).abs().max() for a in schedules for b in schedules) > 1e-3, "they are told apart"
    assert hooks_of(net) == hooks
    assert net.schedule.merging_layers == (), "and the supernet is the plain net again"


def test_hooks_are_removed_after_errors() -> None:
    net = supernet()
    hooks = hooks_of(net)
    with pytest.raises(RuntimeError, match="on purpose"), runner_of(net) as (runner, _):
        runner.load(some_schedules(net)[1])()
        assert hooks_of(net) > hooks
        raise RuntimeError("on purpose")
    assert hooks_of(net) == hooks


@pytest.mark.slow
def test_compiled_runner_runs_the_subnets() -> None:
    net = supernet()
    schedules = some_schedules(net)
    with runner_of(net, runtime="compile") as (runner, images):
        wanted = logits_of_subnets(net, schedules, images)
        for index in (0, 1, 2, 3, 1, 0):
            logits = runner.load(schedules[index])()
            assert isinstance(logits, Tensor)
            torch.testing.assert_close(logits, wanted[schedules[index]], atol=1e-4, rtol=1e-4)
        assert runner.module_times() == {}


@pytest.mark.slow
def test_onnx_runner_runs_the_subnets() -> None:
    net = supernet()
    schedules = some_schedules(net)
    with runner_of(net, runtime="onnxruntime") as (runner, images):
        wanted = logits_of_subnets(net, schedules, images)
        assert not runner.switches_fast
        for index in (0, 1, 0, 1, 2, 0, 1):
            logits = runner.load(schedules[index])()
            torch.testing.assert_close(torch.as_tensor(logits), wanted[schedules[index]], atol=1e-4, rtol=1e-3)
        assert runner.module_times() == {}
