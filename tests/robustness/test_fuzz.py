"""Damaged files of every format: each is loaded or refused in one line, and soon."""

import io
import os
import socket
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save
from support.fuzzing import Kind, Target, damaged, outcome
from support.layers import FakeLayers
from support.profiles import hand_made_profile
from support.records import make_answers, make_record, make_trial

from ltmsearch.cli.run import _settings as settings_of_config
from ltmsearch.config.objective import CostAxis
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.errors import InputError
from ltmsearch.io.presets import shipped_folder
from ltmsearch.io.safetensors_state import load_state, save_state
from ltmsearch.latency import LatencyProfile
from ltmsearch.models import load_weights
from ltmsearch.reporting.findings import find
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile
from ltmsearch.search.answers import ANSWERS, Answers
from ltmsearch.search.checkpoint import WEIGHTS as SHARED
from ltmsearch.search.checkpoint import CheckpointState, load_checkpoint, save_checkpoint
from ltmsearch.search.records import TrialRecord, read_trials, trials_table, write_csv
from ltmsearch.search.teacher import TEACHER, Teacher
from ltmsearch.search.timing import TIMES, Times
from ltmsearch.training.epoch_records import EpochRecord, read_log, write_log

LAYERS = tuple(f"stages.{stage}.1.transformer.{i}" for stage, depth in ((2, 2), (3, 4), (4, 3)) for i in range(depth))
SMALL_RECIPE = b"""schema_version: 1
model: ltm_mobilevit_xxs
operator: ltm
schedule: {stages.2.1.transformer.0: 0.5, stages.3.1.transformer.0: -8, stages.3.1.transformer.1: 1.0}
forms: {stages.2.1.transformer.0: hard}
num_classes: 10
img_size: 224
epochs: 3
warmup_epochs: 1
aa: null
scale: [0.1, 1]
provenance: {study: a, trial: 3}
"""
SMALL_SPACE = b"""schema_version: 1
family: mobilevit
keep_ratios: [1.0, 0.7, &half 0.5]
keep_counts: [-8]
forms: [soft, hard]
ib_weight: [0.01, 1.0]
layers:
  - &rule {pattern: "stages.2.*", keep_ratios: [*half]}
  - {<<: *rule, pattern: "stages.4.1.transformer.0", forms: [soft]}
"""
SMALL_STUDY = b"""backbone: mobilevit_xxs
budget_gflops: 0.2-0.27
trials: 6
seed: 1
dataset: digits
storage: postgresql://user:secret@localhost/studies
study: a-study
"""


def record(trial: int, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "trial": trial, "kind": "searched", "state": "scored", "feasible": True, "gflops": 0.2 + trial / 100,
        "top1": 50.0 + trial, "top1_se": 1.5, "loss": 1.2, "kl": 0.1, "rescored_kl": 0.1, "rescored_loss": 1.1,
        "rescored_version": 7, "report_top1": 51.0, "report_top1_se": 1.0, "difference": -0.5, "difference_se": 0.3,
        "agreement": 95.0, "agreement_se": 0.4, "ib_weight": 0.1, "supernet_version": trial, "seconds": 1.25,
        "keep_ratios": {layer: 1.0 if i % 2 else 0.5 for i, layer in enumerate(LAYERS)},
        "forms": {LAYERS[0]: "hard"},
    }  # fmt: skip
    return make_record(**values | changes)


def epoch(number: int) -> EpochRecord:
    return EpochRecord(
        epoch=number, lr=0.1, train_loss=1.0, ib_weight=0.0, top1=40.0, loss=float("nan"), images_per_second=9.0,
        seconds=1.0,
    )  # fmt: skip


RECORDS = [
    record(0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0), forms={}),
    record(1),
    make_trial(2, 1.3, None, keep_ratios=dict.fromkeys(LAYERS, 1.0)),
    *(record(number) for number in range(3, 6)),
]


@cache
def small_net() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_heads=3, num_classes=4, img_size=32)


def recipe_file(path: Path) -> None:
    recipe = load_recipe(path)
    recipe.to_yaml()
    MergeSchedule.from_mapping(LAYERS, dict.fromkeys(LAYERS, 1.0) | {"*": 0.5}, recipe.schedule.operator)
    hash(recipe.schedule)


def space_file(path: Path) -> None:
    file = SpaceFile.load(str(path), family="mobilevit")
    layers = FakeLayers(layer_grids=dict.fromkeys(LAYERS, (14, 14)), chained=(LAYERS[:2], LAYERS[2:6], LAYERS[6:]))
    try:
        space = SearchSpace.build(file, layers)
    except Exception as error:  # names the pattern, not the file
        raise type(error)(f"{path.name}: {error}") from error
    space.digest()
    space.schedule(space.cheapest)


def settings_file(path: Path) -> None:
    settings = ResolvedSettings.load(path)
    settings.to_yaml()
    str((settings.axis, settings.study_name, settings.run_dir, settings.resolved("cpu")))


def config_file(path: Path) -> None:
    try:
        settings = settings_of_config({}, str(path))
    except Exception as error:  # an error about two settings names `run`, not the file
        raise type(error)(f"{path.name}: {error}") from error
    resolved = settings.resolved("cpu")
    resolved.to_yaml()
    str((resolved.axis, resolved.study_name, resolved.run_dir))


def trials_file(path: Path) -> None:
    records = read_trials(path, "ltm")
    find(records, CostAxis())
    trials_table(records)


def answers_file(path: Path) -> None:
    answers = Answers.load(path)
    find(RECORDS, CostAxis(), answers)
    str([answers.difference(trial) for trial in answers.trials])


def teacher_file(path: Path) -> None:
    held_out: Any = SimpleNamespace(search_size=3, validation_size=2, report_size=2)
    proxy: Any = SimpleNamespace(proxy_steps=2, batch_size=2)
    Teacher().load(path.parent, held_out, proxy)


def times_file(path: Path) -> None:
    times = Times.load(path.parent)
    str((times.seconds, times.total))


def shared_weights(path: Path) -> None:
    load_checkpoint(path.parent)


def weights_file(path: Path) -> None:
    load_weights(small_net(), path)


def profile_file(path: Path) -> None:
    LatencyProfile.load_file(path).model_dump_json()


READERS = (
    "recipe", "space", "config", "settings", "trials", "log", "times", "profile", "shared weights", "training state",
    "weights", "torch weights", "answers", "teacher",
)  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Readers by name."""
    folder = tmp_path_factory.mktemp("originals")
    study = StudySettings.make("test", backbone="mobilevit_xxs", budget_gflops=0.27).resolved("cpu").to_yaml()
    recipe = Recipe(model="ltm_vit", operator="pool", schedule={}, num_classes=2, img_size=64).to_yaml()
    shared = CheckpointState(class_names=["a", "b"], version=3, scored=4, space="0123", trial=4, outcome={"top1": 3.5})
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    save_checkpoint(folder, tensors, shared)
    state = {"recipe": {"lr": 0.1}, "records": [{"epoch": 1}], "learner": {"m": tensors}}
    save_state(folder / "state.safetensors", state)
    stint = {"started": "2026-11-26T21:00:00+00:00", "device": "cpu", "versions": {"torch": "2"}, "seconds": {"a": 1.5}}
    torch_file = io.BytesIO()
    torch.save(small_net().state_dict(), torch_file)
    profile = hand_made_profile(lambda suffix: 0.1, base_ms=5.0)
    profile = profile.model_copy(update={"weights": dict(list(profile.weights.items())[:5])})
    trials = write_csv(trials_table(RECORDS), folder / "t.csv")
    log = write_log([epoch(1), epoch(2)], folder / "log.csv")
    answers = make_answers(RECORDS, 40).save(folder / ANSWERS)
    sizes = {"search": 3, "validation": 2, "report": 2, "train": 4}
    Teacher(predictions={name: torch.zeros(size, 5) for name, size in sizes.items()}).save(folder)

    def shipped(kind: Literal["search_spaces", "studies"], names: str = "*") -> list[bytes]:
        return [path.read_bytes() for path in sorted(shipped_folder(kind).glob(f"{names}.yaml"))]

    def target(
        name: str, kind: Kind, file: str, load: Callable[[Path], object], *originals: bytes | str | Path
    ) -> Target:
        contents = (
            o.read_bytes() if isinstance(o, Path) else o.encode() if isinstance(o, str) else o for o in originals
        )
        return Target(name=name, kind=kind, file=file, load=load, originals=tuple(contents))

    made = [
        target("recipe", "yaml", "recipe.yaml", recipe_file, SMALL_RECIPE, SMALL_RECIPE, SMALL_RECIPE, recipe),
        target("space", "yaml", "space.yaml", space_file, SMALL_SPACE, SMALL_SPACE, *shipped("search_spaces", "*vit")),
        target("config", "yaml", "config.yaml", config_file, SMALL_STUDY, *shipped("studies")),
        target("settings", "yaml", "settings.yaml", settings_file, study),
        target("trials", "csv", "trials.csv", trials_file, trials),
        target("log", "csv", "log.csv", read_log, log),
        target("answers", "csv", ANSWERS, answers_file, answers),
        target("teacher", "safetensors", TEACHER, teacher_file, folder / TEACHER),
        target("times", "json", TIMES, times_file, Times.model_validate({"stints": [stint, stint]}).model_dump_json()),
        target("profile", "json", "latency.json", profile_file, profile.model_dump_json(indent=1)),
        target("shared weights", "safetensors", SHARED, shared_weights, folder / SHARED),
        target("training state", "safetensors", "state.safetensors", load_state, folder / "state.safetensors"),
        target("weights", "safetensors", "weights.safetensors", weights_file, save(small_net().state_dict())),
        target("torch weights", "safetensors", "weights.pt", weights_file, torch_file.getvalue()),
    ]
    return {target.name: target for target in made}


def fuzz(target: Target, examples: int, folder: Path) -> Counter[str]:
    """Read that many damaged files; each must be loaded or refused."""
    path, outcomes = folder / target.file, Counter[str]()

    @settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(content=damaged(target))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(target.load, path)
        outcomes[result] += 1
        assert result in ("loaded", "refused")

    read()
    return outcomes


@pytest.mark.long
@pytest.mark.parametrize(
    "examples", [200, pytest.param(1000, marks=pytest.mark.slow), pytest.param(4000, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_load_or_are_refused_in_one_line(
    targets: dict[str, Target], name: str, tmp_path: Path, examples: int, record_property: Callable[[str, object], None]
) -> None:
    outcomes = fuzz(targets[name], examples, tmp_path)
    record_property("summary", f"{name}: {outcomes.total()} damaged files, {dict(outcomes)}")
    assert set(outcomes) == {"loaded", "refused"}, "otherwise only the first check of the reader is tested"


@pytest.mark.parametrize(("first", "rest"), [("[1]", "[%s]"), ("{x: 1}", "{<<: [%s]}"), ("{x: 1}", "{k: [%s]}")])
@pytest.mark.parametrize("key", ["layers", "provenance", "schedule", "keep_ratios", "seed", "x"])
def test_a_billion_aliases_are_refused(
    targets: dict[str, Target], tmp_path: Path, key: str, first: str, rest: str
) -> None:
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} " + rest % ", ".join([f"*a{i - 1}"] * 9) for i in range(1, 12)]
    bomb = "\n".join(["", *lines, f"{key}: *a11", ""]).encode()
    for target in targets.values():
        if target.kind == "yaml":
            path = tmp_path / target.file
            path.write_bytes(target.originals[0] + bomb)
            assert outcome(target.load, path) == "refused", target.name


@pytest.mark.parametrize("end", [b"#", b" ", b"\n", b"a", b"[", b"- ", b'"'])
def test_very_long_files_are_read_soon(targets: dict[str, Target], tmp_path: Path, end: bytes) -> None:
    for target in targets.values():
        path = tmp_path / target.file
        path.write_bytes(target.originals[0] + end * 3_000_000)
        assert outcome(target.load, path) in ("loaded", "refused"), target.name


def place(kind: str, path: Path) -> None:
    """Create something other than a readable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "endless":
            path.symlink_to("/dev/zero")
        case "nothing":
            path.symlink_to("/dev/null")
        case "link to itself":
            path.symlink_to(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.path.relpath(path))  # which may have some hundred characters
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)  # takes no room on the disk


@pytest.mark.parametrize("kind", ["folder", "pipe", "endless", "nothing", "link to itself", "socket", "huge"])
def test_devices_folders_and_pipes_are_refused_soon(
    targets: dict[str, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in targets.values():
        path = tmp_path / target.name / target.file
        place(kind, path)
        came = outcome(target.load, path)
        if (kind, target.name) == ("link to itself", "shared weights"):  # like a missing file
            assert came == "loaded"
        else:
            assert came == "refused", target.name


def test_a_missing_file_is_refused(targets: dict[str, Target], tmp_path: Path) -> None:
    may_be_missing = {"times", "shared weights"}  # a run that has none begins
    came = {target.name: outcome(target.load, tmp_path / target.file) for target in targets.values()}
    assert came == {name: "loaded" if name in may_be_missing else "refused" for name in came}


def test_faults_of_readers_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def hangs(path: Path) -> None:
        while True:
            pass

    def refuses(message: str) -> Callable[[Path], None]:
        def load(path: Path) -> None:
            raise InputError(message)

        return load

    with monkeypatch.context() as patch:
        patch.setattr("support.fuzzing.SECONDS", 0.05)
        assert outcome(hangs, tmp_path / "a.yaml") == "took more than 0.05 s"
    assert outcome(lambda path: {}["x"], tmp_path / "a.yaml").startswith("KeyError at test_fuzz.py")
    assert outcome(refuses("no"), tmp_path / "a.yaml").startswith("does not name the file")
    assert outcome(refuses("a.yaml " * 1000), tmp_path / "a.yaml").startswith("not one printable line")
    assert outcome(refuses("a.yaml"), tmp_path / "a.yaml") == "refused"
