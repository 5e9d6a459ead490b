"""Settings: defaults by device, round trips through a file, and differences between studies."""

from pathlib import Path

import pytest

from ltmsearch.config.continuation import continued, refuse_other_settings
from ltmsearch.config.defaults import Learning
from ltmsearch.config.settings import ResolvedSettings, StudySettings
from ltmsearch.errors import InputError


def settings(**changes: object) -> StudySettings:
    return StudySettings.make("test", **{"backbone": "mobilevit_s", "budget_gflops": 1.2, **changes})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_resolved_settings_round_trip(tmp_path: Path, device: str) -> None:
    resolved = settings(data_dir="images").resolved(device)
    path = tmp_path / "settings.yaml"
    path.write_text(resolved.to_yaml())
    assert ResolvedSettings.load(path) == resolved
    assert resolved.resolved(device) == resolved
    assert resolved.dataset == "folder"


def test_given_settings_override_device_defaults() -> None:
    resolved = settings(proxy_img_size=96, base_steps=0).resolved("cpu")
    assert (resolved.proxy_img_size, resolved.base_steps, resolved.base_img_size) == (96, 0, 64)
    assert settings(proxy_img_size=48).resolved("cpu").base_img_size == 48
    assert settings(img_size=256).resolved("cuda").proxy_img_size == 256


def test_warmup_defaults_depend_on_family_and_weights() -> None:
    slow = Learning(lr=5e-4, grows=False, patience=2)
    usual, late = settings().resolved("cpu"), settings().resolved("cpu", slow)
    assert (late.base_steps, late.batch_size) == (2 * usual.base_steps, 2 * usual.batch_size)
    assert (usual.warmup_lr, late.warmup_lr) == (1e-3, 5e-4)
    assert usual.base_img_size < late.base_img_size == late.proxy_img_size
    trained = settings(pretrained=True).resolved("cpu", slow)
    assert (trained.warmup_lr, trained.base_steps, trained.base_img_size) == (1e-5, 300, trained.proxy_img_size)
    assert settings(checkpoint="weights.safetensors").resolved("cpu").warmup_lr == 1e-5
    assert settings(warmup_lr=3e-4, batch_size=8).resolved("cpu", slow).warmup_lr == 3e-4
    assert (usual.proxy_lr, trained.proxy_lr) == (2e-4, 1e-5)
    assert settings(resume_from="runs/earlier").resolved("cpu").proxy_lr == 2e-4


@pytest.mark.parametrize(
    ("given", "measure"),
    [
        ({}, "loss"),
        ({"pretrained": True}, "kl"),
        ({"checkpoint": "weights.safetensors"}, "kl"),
        ({"resume_from": "runs/earlier"}, "kl"),
        ({"objective": "kl"}, "kl"),
        ({"objective": "loss", "pretrained": True}, "loss"),
    ],
)
def test_given_weights_decide_the_objective(given: dict[str, object], measure: str) -> None:
    resolved = settings(**given).resolved("cpu")
    assert resolved.objective == resolved.axis.measure == measure
    assert resolved.resolved("cpu").objective == measure, "the study keeps it"


def test_trials_that_learn_from_a_teacher_do_not_train() -> None:
    """Unless asked to: the warm-up has more steps for subnets instead."""
    labels, teacher = settings().resolved("cpu"), settings(objective="kl").resolved("cpu")
    assert teacher.proxy_steps == 0 < labels.proxy_steps
    assert teacher.sandwich_steps > labels.sandwich_steps
    assert settings(objective="kl", proxy_steps=3).resolved("cpu").proxy_steps == 3


def test_the_test_split_is_part_of_the_data() -> None:
    stored = settings(data_dir="images").resolved("cpu")
    with pytest.raises(InputError, match="test_split was None and is now 'other'"):
        refuse_other_settings(settings(data_dir="images", test_split="other").resolved("cpu"), stored, Path("run"))
    assert settings(data_dir="images", test_split="other").layout.test_split == "other"
    with pytest.raises(InputError, match="test_split"):
        settings(data_dir="images", test_split="../other")


def test_different_studies_have_different_names() -> None:
    names = {
        settings(**change).study_name
        for change in (
            {}, {"budget_gflops": 1.3}, {"img_size": 256}, {"operator": "tome"}, {"data_dir": "images"},
            {"dataset": "torch/cifar10"}, {"study": "mine"},
        )
    }  # fmt: skip
    assert len(names) == 7
    assert all("/" not in name for name in names)
    assert settings().run_dir == Path("runs") / settings().study_name
    assert settings(out="here").run_dir == Path("here")


def latency(**changes: object) -> StudySettings:
    return StudySettings.make("test", **{"backbone": "mobilevit_s", "budget_ms": 25.0, **changes})


def test_budgets_determine_the_name_and_the_axis() -> None:
    assert settings().study_name == "mobilevit_s-ltm-1.2gflops-224-digits"
    assert latency().study_name == "mobilevit_s-ltm-25ms-224-digits"
    assert latency(budget_gflops=1.2).study_name == "mobilevit_s-ltm-1.2gflops-25ms-224-digits"
    axis = settings(img_size=256).axis
    assert (axis.name, axis.unit, axis.budget) == ("gflops", "GFLOPs", 1.2)
    assert axis.title == "GFLOPs per image at 256 px (one multiply-add = one FLOP)"
    assert axis.text(1.23456) == "1.2346 GFLOPs"
    axis = latency(budget_gflops=1.2, latency_batch=8, latency_device="cuda", latency_runtime="compile").axis
    assert (axis.name, axis.unit, axis.budget) == ("latency_ms", "ms", 25.0)
    assert axis.title == "ms per batch of 8 at 224 px, predicted (cuda, compile, fp32)"
    assert axis.text(12.346) == "12.35 ms"
    assert latency(latency_profile="p.json").axis.title == "ms per batch at 224 px, predicted (p.json)"


def test_latency_device_defaults_to_the_studys() -> None:
    assert latency().resolved("cuda").latency_device == "cuda"
    assert latency(device="cuda:1").resolved("cuda").latency_device == "cuda:1"
    assert latency(device="cuda:1", latency_device="cpu").resolved("cuda").latency_device == "cpu"
    assert latency(latency_profile="p.json").resolved("cpu").latency_device is None, "the profile determines it"
    assert settings().resolved("cpu").latency_device is None


@pytest.mark.parametrize("given", [{}, {"latency_profile": "p.json"}, {"latency_batch": 4, "latency_threads": 2}])
def test_settings_with_a_latency_budget_round_trip(tmp_path: Path, given: dict[str, object]) -> None:
    resolved = latency(**given).resolved("cpu")
    path = tmp_path / "settings.yaml"
    path.write_text(resolved.to_yaml())
    assert ResolvedSettings.load(path) == resolved
    assert resolved.resolved("cpu") == resolved


def test_only_trials_timeout_and_tolerance_may_change() -> None:
    stored = settings().resolved("cpu")
    refuse_other_settings(settings(trials=99, timeout=5, tolerance=2).resolved("cpu"), stored, Path("run"))
    with pytest.raises(InputError, match="seed was 0 and is now 4.*--study NAME or --out DIR"):
        refuse_other_settings(settings(seed=4).resolved("cpu"), stored, Path("run"))


def test_a_study_keeps_what_newer_defaults_would_change() -> None:
    stored = settings(screened_schedules=200, scoring_batch_size=32, study="mine").resolved("cpu")
    kept = continued(settings(), stored)
    assert (kept.screened_schedules, kept.scoring_batch_size, kept.study) == (200, 32, "mine")
    refuse_other_settings(kept.resolved("cpu"), stored, Path("run"))
    given = continued(settings(scoring_batch_size=8), stored)
    assert (given.screened_schedules, given.scoring_batch_size) == (200, 8)
    assert (
        continued(settings(), None).resolved("cpu").screened_schedules == settings().resolved("cpu").screened_schedules
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": True}, "trials must be a number"),
        ({"scoring_batch_size": True}, "scoring_batch_size must be a number"),
        ({"update_share": 1.5}, "update_share must be less than or equal to 1, but got 1.5"),
        ({"dataset": "folder"}, "dataset 'folder' needs data_dir"),
        ({"ib_beta": 0}, "ib_beta must be greater than 0"),
        ({"ib_beta": float("inf")}, "ib_beta must be a finite number"),
        ({"seed": -1}, "seed must be greater than or equal to 0"),
        ({"bugdet_gflops": 1}, "unknown setting 'bugdet_gflops': did you mean budget_gflops"),
        ({"budget_gflops": None}, "budget_gflops, budget_ms or both must be given"),
        ({"latency_batch": 2}, "latency_batch needs budget_ms"),
        ({"budget_ms": 25, "latency_profile": "p", "latency_device": "cpu"}, "latency_device cannot be given with it"),
        ({"budget_ms": 25, "latency_runtime": "x"}, "latency_runtime must be 'torch', 'compile' or 'onnxruntime'"),
        ({"checkpoint": "a", "pretrained": True}, "pretrained and checkpoint cannot both be given"),
        ({"study": "a/b"}, "study must match pattern"),
        ({"objective": "top1"}, "objective must be 'auto', 'kl' or 'loss', but got 'top1'"),
        ({"tolerance": -0.1}, "tolerance must be greater than or equal to 0"),
        ({"screened_schedules": 15}, "screened_schedules must be greater than or equal to 16"),
        ({"search_images": 7}, "search_images must be greater than or equal to 8"),
        ({"sandwich_subnets": 0}, "sandwich_subnets must be greater than or equal to 1"),
        ({"val_images": 256}, "unknown setting 'val_images'"),
    ],
)
def test_invalid_values_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**change)


def test_names_of_studies_are_short_enough_for_a_folder() -> None:
    with pytest.raises(InputError, match="study must have at most 150 characters, but got 'nnn"):
        settings(study="n" * 151)
    assert settings(study="n" * 150).run_dir == Path("runs") / ("n" * 150)
    derived = settings(data_dir="ü" * 120).resolved("cpu")  # within the 255 bytes of a folder's name
    assert len(derived.study.encode()) in (149, 150)
    assert derived.study.startswith("mobilevit_s-ltm-1.2gflops-224-ü")
    assert settings(data_dir="a\nb").study_name == "mobilevit_s-ltm-1.2gflops-224-a-b"
