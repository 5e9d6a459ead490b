"""Arguments that take one of a few names: every public callable refuses other values in one line."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from pydantic import BaseModel

import ltmsearch
from ltmsearch.config.names import Precision, Sampler
from ltmsearch.config.objective import CostAxis, check_costs
from ltmsearch.costs.budget import Budget
from ltmsearch.data.digits import ClutteredDigits
from ltmsearch.data.loading import load_data
from ltmsearch.data.preparation import ImageOptions
from ltmsearch.data.sources import Scoring
from ltmsearch.data.transforms import Augmentation, evaluation_transform, make_transforms
from ltmsearch.engine.runtime import amp_runtime, find_device
from ltmsearch.engine.stopwatch import choose_runtime
from ltmsearch.errors import InputError
from ltmsearch.io.presets import find_file, shipped_folder, shipped_names
from ltmsearch.latency.target import LatencyTarget
from ltmsearch.merging import LearnableTokenMerging, PoolMerging, TokenSelection, check_form, get_operator
from ltmsearch.models.registers import check_registers
from ltmsearch.models.registry import attach_operators, create_subnet
from ltmsearch.models.supernet import Supernet
from ltmsearch.models.weights import build_backbone, create_backbone
from ltmsearch.reporting.findings import find
from ltmsearch.reporting.layer_plot import height, layers_figure
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.schedules.schedule import Choice, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.optuna_records import completed_trial, objectives
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.samplers import make_sampler
from ltmsearch.search.teacher import Teacher
from ltmsearch.search.trial import Evaluator
from ltmsearch.training.options import TrainingOptions

ANY: Any = None
"""An argument that is not looked at before the name is refused."""
CPU = torch.device("cpu")
XXS, LAYER = "mobilevit_xxs", "stages.2.1.transformer.0"
SPACE = SearchSpace(layers=("a",), choices=((Choice(1.0),),), layer_tokens=(4,))
TRIAL: Any = TrialRecord.__new__(TrialRecord)
EVALUATOR: Any = Evaluator.__new__(Evaluator)
ERASING: dict[str, Any] = {
    "scale": (1, 1), "ratio": (1, 1), "hflip": 0, "color_jitter": None, "auto_augment": None, "re_prob": 0.5,
    "re_count": 1,
}  # fmt: skip
GREY = (0.5, 0.5, 0.5)
RESIZING: dict[str, Any] = {"interpolation": "bicubic", "crop_mode": "center"}
DIGITS: dict[str, Any] = {
    "dataset": "digits", "data_dir": None, "img_size": 32, "mean": GREY, "std": GREY, "val_images": 8,
    "calibration_images": 8, "seed": 0,
}  # fmt: skip

CALLS: dict[str, Callable[[Any], object]] = {
    "config.objective:CostAxis(name)": lambda name: CostAxis(name=name),
    "config.objective:CostAxis(measure)": lambda name: CostAxis(measure=name),
    "config.objective:check_costs(costs)": lambda name: check_costs("a front", (name,)),
    "costs.budget:Budget(name)": lambda name: Budget(name=name, table=ANY, limit=1),
    "data.digits:ClutteredDigits(split)": lambda name: ClutteredDigits(name, img_size=32, seed=0, length=1),
    "data.loading:load_data(interpolation)": lambda name: load_data(interpolation=name, **DIGITS),
    "data.loading:load_data(crop_mode)": lambda name: load_data(crop_mode=name, **DIGITS),
    "data.preparation:ImageOptions(interpolation)": lambda name: ImageOptions(interpolation=name),
    "data.preparation:ImageOptions(crop_mode)": lambda name: ImageOptions(crop_mode=name),
    "data.sources:Scoring(split)": lambda name: Scoring(split=name, class_names=None),
    "data.transforms:Augmentation(re_mode)": lambda name: Augmentation(re_mode=name, **ERASING),
    "data.transforms:evaluation_transform(interpolation)": lambda name: evaluation_transform(
        32, crop_pct=1, mean=GREY, **RESIZING | {"interpolation": name}
    ),
    "data.transforms:evaluation_transform(crop_mode)": lambda name: evaluation_transform(
        32, crop_pct=1, mean=GREY, **RESIZING | {"crop_mode": name}
    ),
    "data.transforms:make_transforms(interpolation)": lambda name: make_transforms(
        "folder", 32, GREY, GREY, crop_pct=1, augmentation=None, **RESIZING | {"interpolation": name}
    ),
    "data.transforms:make_transforms(crop_mode)": lambda name: make_transforms(
        "folder", 32, GREY, GREY, crop_pct=1, augmentation=None, **RESIZING | {"crop_mode": name}
    ),
    "engine.runtime:amp_runtime(dtype)": lambda name: amp_runtime(CPU, amp=False, dtype=name),
    "engine.stopwatch:choose_runtime(precision)": lambda name: choose_runtime(CPU, name, ANY, ANY, train=True),
    "io.presets:find_file(kind)": lambda name: find_file(name, "mobilevit"),
    "io.presets:shipped_folder(kind)": shipped_folder,
    "io.presets:shipped_names(kind)": shipped_names,
    "merging.ltm:LearnableTokenMerging(start)": lambda name: LearnableTokenMerging(16, name),
    "merging.operator:MergeOperator(start)": lambda name: PoolMerging(16, name),
    "merging.select:TokenSelection(start)": lambda name: TokenSelection(16, name),
    "models.registry:attach_operators(start)": lambda name: attach_operators(
        XXS, create_backbone(XXS), operator="ltm", layers=[LAYER], start=name
    ),
    "models.registry:create_subnet(forms)": lambda name: create_subnet(XXS, keep_ratios=0.5, forms=name),
    "models.registry:create_subnet(mask_start)": lambda name: create_subnet(XXS, mask_start=name, pretrained=True),
    "models.registry:create_subnet(readout)": lambda name: create_subnet(XXS, readout=name),
    "models.weights:create_backbone(readout)": lambda name: create_backbone(XXS, readout=name),
    "models.weights:build_backbone(readout)": lambda name: build_backbone(XXS, readout=name),
    "models.registers:check_registers(readout)": lambda name: check_registers(1, name),
    "models.supernet:Supernet(mask_start)": lambda name: Supernet(XXS, mask_start=name, pretrained=True),
    "reporting.layer_plot:height(place)": lambda name: height(find([], CostAxis()), name),
    "reporting.layer_plot:layers_figure(place)": lambda name: layers_figure(find([], CostAxis()), place=name),
    "reporting.pareto_plot:front_figure(place)": lambda name: front_figure([], axis=CostAxis(), place=name),
    "schedules.schedule:MergeSchedule(forms)": lambda name: MergeSchedule(keep_ratios={"a": 1}, forms={"a": name}),
    "schedules.schedule:MergeSchedule.from_list(form)": lambda name: MergeSchedule.from_list("a", [1], form=name),
    "schedules.schedule:MergeSchedule.from_mapping(forms)": lambda name: MergeSchedule.from_mapping(
        ["a"], {"a": 1}, "ltm", {"a": name}
    ),
    "schedules.schedule:MergeSchedule.uniform(form)": lambda name: MergeSchedule.uniform("a", 1, form=name),
    "schedules.space:SearchSpace(operator_forms)": lambda name: SearchSpace(
        layers=(), choices=(), layer_tokens=(), operator_forms=("soft", name)
    ),
    "schedules.space:SearchSpace.nearest(form)": lambda name: SPACE.nearest(0.5, name),
    "schedules.space:SearchSpace.nearest_choice(form)": lambda name: SPACE.nearest_choice(0, 0.5, name),
    "search.records:TrialRecord.cost(name)": lambda name: TRIAL.cost(name),
    "search.records:TrialRecord.costs(names)": lambda name: TRIAL.costs((name,)),
    "search.records:TrialRecord.rescored(measure)": lambda name: TRIAL.rescored(name),
    "search.records:TrialRecord.told(measure)": lambda name: TRIAL.told(name),
    "search.optuna_records:completed_trial(measure)": lambda name: completed_trial(ANY, {}, name),
    "search.optuna_records:objectives(measure)": lambda name: objectives({}, name),
    "search.teacher:Teacher.of(images)": lambda name: Teacher().of(name),
    "search.trial:Evaluator.held_out(images)": lambda name: EVALUATOR.held_out(name),
    "search.trial:Evaluator.score(images)": lambda name: EVALUATOR.score(ANY, name),
    "search.samplers:make_sampler(name)": lambda name: make_sampler(name, 0),
    "training.options:TrainingOptions(head)": lambda name: TrainingOptions(out=Path(), head=name),
}
"""`module:callable(parameter)` → a call in which only this argument is wrong."""

NOT_CHOSEN = {
    "costs.latency:LatencyModel(default_form)",
    "costs.macs:CostModel(default_form)",
    "costs.tables:ChainedCosts(default_form)",
    "data.sources:open_digits(lengths)",
    "data.sources:open_digits(scored)",
    "models.merge_traces:LayerMerges(form)",
    "reporting.html.charts:information_figure(measure)",
    "reporting.pareto_layout:FrontLayout(curves)",
    "reporting.pareto_layout:FrontLayout(marks)",
    "reporting.verdict:Recommendation(reason)",
    "search.baselines:BaselineFit.cheapest_uniform(form)",
    "search.baselines:BaselineFit.uniform(form)",
    "search.img_sizes:open_sizes(wanted)",
    "search.initial_trials:InitialTrial(kind)",
}
"""Fields of records and arguments that only the library makes."""
CHECKED_BEFORE = ("merge_macs(form)", "unmerge_macs(form)", "target(form)")
"""Of each operator and layer, called for every choice of a space: the form was checked when the schedule was made."""


def public_callables() -> Iterator[tuple[str, Any]]:
    """`module:name` and function, for the functions, constructors and methods of the package."""
    for found in pkgutil.walk_packages(ltmsearch.__path__, "ltmsearch."):
        if found.name.startswith("ltmsearch.cli") or found.name.endswith("__main__"):  # typer refuses, and calls this
            continue
        module = importlib.import_module(found.name)
        where = found.name.removeprefix("ltmsearch.")
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                yield f"{where}:{name}", value
            elif inspect.isclass(value) and not issubclass(value, BaseModel):  # pydantic refuses by itself
                for attribute, method in vars(value).items():
                    method = getattr(method, "__func__", method)
                    if inspect.isfunction(method) and (attribute == "__init__" or not attribute.startswith("_")):
                        yield f"{where}:{name}{'' if attribute == '__init__' else f'.{attribute}'}", method


def takes_names(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return any(isinstance(name, str) for name in get_args(annotation))
    return any(takes_names(part) for part in get_args(annotation))


def parameters_with_choices() -> set[str]:
    found = set()
    for name, function in public_callables():
        try:
            hints = get_type_hints(function)
        except NameError:  # the constructor of a pydantic dataclass, which refuses by itself
            continue
        found |= {f"{name}({p})" for p, kind in hints.items() if p != "return" and takes_names(kind)}
    return {name for name in found if not name.endswith(CHECKED_BEFORE)}


def test_every_parameter_with_choices_is_tried() -> None:
    """A new one must be added to `CALLS`."""
    assert parameters_with_choices() - NOT_CHOSEN == CALLS.keys()


@pytest.mark.parametrize("parameter", CALLS)
@pytest.mark.parametrize("value", ["contents", "", 3, ["auto"]], ids=str)
def test_other_values_are_refused_in_one_line(parameter: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        CALLS[parameter](value)
    message = str(caught.value)
    assert f"but got {value!r}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (
            "models.registry:create_subnet(mask_start)",
            "contents",
            "mask_start must be auto, content, place, but got 'contents': did you mean content?",
        ),
        (
            "search.samplers:make_sampler(name)",
            "tpee",
            "the sampler must be auto, tpe, gp, nsga2, random, but got 'tpee': did you mean tpe?",
        ),
        (
            "data.loading:load_data(interpolation)",
            "bicubicc",
            "`interpolation` must be nearest, bilinear, bicubic, box, hamming, lanczos, but got 'bicubicc': "
            "did you mean bicubic?",
        ),
        (
            "engine.stopwatch:choose_runtime(precision)",
            "fp16",
            f"the precision must be {', '.join(get_args(Precision))}, but got 'fp16': did you mean bf16?",
        ),
    ],
)
def test_the_message_has_rule_value_and_suggestion(parameter: str, value: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        CALLS[parameter](value)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "call",
    [
        get_operator,
        find_device,
        lambda name: check_form("ltm", name),
        lambda name: create_subnet(XXS, operator=name),
        lambda name: Supernet(XXS, operator=name),
        lambda name: LatencyTarget.local(runtime=name),
        lambda name: LatencyTarget.local(dtype=name),
        lambda name: LatencyTarget.local(memory_format=name),
    ],
)
@pytest.mark.parametrize("value", ["nonsense", 3, None], ids=str)
def test_names_of_longer_lists_are_refused_too(call: Callable[[Any], object], value: object) -> None:
    with pytest.raises(InputError, match=repr(value)):
        call(value)


@pytest.mark.parametrize("name", get_args(Sampler))
def test_valid_names_are_accepted(name: Any) -> None:
    make_sampler(name, 0)
