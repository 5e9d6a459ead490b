"""Export of studies and trainings: timm, `load_recipe` and other runtimes read the files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.command_line import Ltmsearch, Notes
from support.nets import randomise
from support.records import BEST, OPEN, RECORDS, START_UP, UNIFORM, make_record
from torch import nn

from ltmsearch.config.objective import CostAxis
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.errors import ExportError, InputError
from ltmsearch.export import choose_trials, export_run
from ltmsearch.export.folder import write_recipe, write_weights
from ltmsearch.export.subnets import Subnet
from ltmsearch.models.supernet import Supernet
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run

FAMILIES = {
    "mobilevit_xxs": ("stages.3.1.transformer.1", 64),
    "efficientvit_b0": ("stages.3.blocks.1", 64),
    "vit_tiny_patch16_224": ("blocks.3", 80),
    "swin_tiny_patch4_window7_224": ("layers.1.blocks.1", 112),
    "swinv2_tiny_window8_256": ("layers.1.blocks.1", 112),
    "tiny_vit_5m_224": ("stages.2.blocks.1", 64),
    "fastvit_t8": ("stages.2.blocks.1", 64),
}
"""Backbone → a layer that merges, and an image size that is not the backbone's own."""
NAMES = ("dog", "cat", "bird")


def make_recipe(backbone: str) -> Recipe:
    layer, img_size = FAMILIES[backbone]
    return Recipe(
        model=f"ltm_{backbone}", operator="ltm", schedule={layer: 0.5}, forms={layer: "hard"}, num_classes=3,
        img_size=img_size, provenance={"trial": 7, "gflops": 0.1},
    )  # fmt: skip


def trained(recipe: Recipe) -> nn.Module:
    """The recipe's subnet as a study holds it: cut out of a supernet that takes images of any size."""
    supernet = randomise(Supernet(recipe.backbone, num_classes=3, img_size=recipe.img_size)).eval()
    return supernet.extract(recipe.schedule)  # type: ignore[operator, no-any-return]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """The folder of a training, as `ltmsearch train` leaves it."""
    folder = tmp_path / "training"
    folder.mkdir()
    recipe = replace_recipe(make_recipe("vit_tiny_patch16_224"), img_size=32)
    recipe.save(folder / "recipe.yaml")
    for name, seed in (("best", 1), ("last", 2)):
        net = randomise(timm.create_model(recipe.model, **recipe.model_kwargs()), seed)
        metadata = {"ltmsearch": json.dumps({"class_names": NAMES, "epoch": seed})}
        save_file(net.state_dict(), folder / f"{name}.safetensors", metadata)
    return folder


def replace_recipe(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update=changes)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- folders for timm and load_recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("swin")) for name in sorted(FAMILIES)]
)
def test_timm_and_load_recipe_rebuild_the_same_network(backbone: str, tmp_path: Path) -> None:
    recipe = make_recipe(backbone)
    net = trained(recipe)
    subnet = Subnet(source=Path("w"), recipe=recipe, trial=7, class_names=NAMES, trained=net)
    written = [write_recipe(recipe, tmp_path), *write_weights(subnet, tmp_path)]
    assert files_in(tmp_path) == ["config.json", "model.safetensors", "recipe.yaml"]
    assert [(file.file.name, file.bytes) for file in written] == [
        (name, (tmp_path / name).stat().st_size) for name in ("recipe.yaml", "model.safetensors", "config.json")
    ]
    assert [file.difference for file in written] == [None, 0.0, None]
    read = load_recipe(tmp_path / "recipe.yaml")
    assert read == recipe
    by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    checkpoint = str(tmp_path / "model.safetensors")
    by_recipe = timm.create_model(read.model, checkpoint_path=checkpoint, **read.model_kwargs()).eval()
    images = torch.randn(3, 3, recipe.img_size, recipe.img_size)
    with torch.no_grad():
        assert torch.equal(by_timm(images), net(images))
        assert torch.equal(by_recipe(images), net(images))
    data = timm.data.resolve_model_data_config(by_timm)
    plain = timm.data.resolve_model_data_config(timm.create_model(backbone))
    assert data["input_size"] == (3, recipe.img_size, recipe.img_size)
    for key in ("mean", "std", "crop_pct", "crop_mode", "interpolation"):
        assert np.array_equal(data[key], plain[key]), key
    assert by_timm.pretrained_cfg["label_names"] == list(NAMES)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["ltmsearch"])["class_names"] == list(NAMES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "side"),
    [("mobilevit_xxs", 64), ("vit_tiny_patch16_224", 48), ("eva02_tiny_patch14_224", 56),
     ("swin_tiny_patch4_window7_224", 84), ("swinv2_tiny_window8_256", 96), ("tiny_vit_5m_224", 64),
     ("fastvit_t8", 64), ("efficientvit_b0", 64)],
)  # fmt: skip
def test_a_subnet_for_smaller_images_is_that_of_the_supernet(backbone: str, side: int) -> None:
    torch.manual_seed(0)
    supernet = randomise(Supernet(backbone, num_classes=3, img_size=112)).eval()
    images = torch.randn(2, 3, side, side)
    for ratio in (1.0, 0.6):
        recipe = Recipe(
            model=f"ltm_{backbone}", operator="ltm", schedule=dict.fromkeys(supernet.layers, ratio), num_classes=3,
            img_size=side,
        )  # fmt: skip
        schedule = replace(recipe.schedule, img_size=side)  # as in a study of several sizes
        trained = supernet.extract(schedule)
        subnet = Subnet(source=Path("w"), recipe=recipe, trial=1, class_names=NAMES, trained=trained)
        with torch.inference_mode(), supernet.active(schedule):
            logits = subnet.network(images)
            torch.testing.assert_close(trained(images), logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(supernet.model(images), logits, atol=1e-4, rtol=1e-4)


def test_folder_fine_tunes_with_other_classes_and_sizes(tmp_path: Path) -> None:
    """Another number of classes keeps all but the classifier, and another image size has its positions resized."""
    recipe = make_recipe("vit_tiny_patch16_224")
    net = trained(recipe)
    write_recipe(recipe, tmp_path)
    write_weights(Subnet(source=Path("w"), recipe=recipe, trial=None, class_names=None, trained=net), tmp_path)
    assert "label_names" not in json.loads((tmp_path / "config.json").read_text())
    more = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=9)
    assert more.head.out_features == 9
    state = net.state_dict()
    assert all(torch.equal(value, state[n]) for n, value in more.state_dict().items() if not n.startswith("head."))
    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=160)
    assert larger.pos_embed.shape[1] == 1 + 100
    assert torch.equal(larger.state_dict()["blocks.3.merging.log_gain"], state["blocks.3.merging.log_gain"])
    unloaded = timm.create_model(f"local-dir:{tmp_path}")
    assert not torch.equal(unloaded.head.weight, net.head.weight)  # type: ignore[arg-type]


def test_folder_with_other_logits_is_not_written(tmp_path: Path) -> None:
    recipe = make_recipe("mobilevit_xxs")
    subnet = Subnet(source=Path("w"), recipe=recipe, trial=None, class_names=NAMES, trained=trained(recipe))
    with torch.no_grad():
        next(subnet.network.parameters()).mul_(1.01)
    write_recipe(recipe, tmp_path)
    (tmp_path / "config.json").write_text("the older one")
    with pytest.raises(ExportError, match="must give the logits of the one in memory, but does not"):
        write_weights(subnet, tmp_path)
    assert files_in(tmp_path) == ["config.json", "recipe.yaml"]
    assert (tmp_path / "config.json").read_text() == "the older one"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


# -- choice of trials -------------------------------------------------------------------------------------------------


def test_trials_are_chosen_by_number_rank_and_cost() -> None:
    axis = CostAxis(measure="kl")
    front = [BEST, UNIFORM, START_UP]
    assert choose_trials(RECORDS, axis=axis) == front[:1]
    assert choose_trials(RECORDS, axis=axis, recommended=START_UP.trial) == [START_UP]
    assert choose_trials(RECORDS, axis=axis, recommended=START_UP.trial, top=1) == front[:1]
    assert choose_trials(RECORDS, axis=axis, top=2) == front[:2]
    assert choose_trials(RECORDS, axis=axis, top=99) == front
    assert choose_trials(RECORDS, axis=axis, trial=OPEN.trial) == [OPEN]
    assert choose_trials(RECORDS, axis=axis, under_gflops=1.1) == [START_UP]
    for choice, message in (
        ({"trial": 999}, "trial 999 has no score; the front has the trials 3, 1, 2"),
        ({"trial": 5}, "trial 5 has no score"),
        ({"under_gflops": 0.01}, "no trial of the front costs at most 0.01 GFLOPs; the cheapest costs 1.1000"),
        ({"top": 1, "trial": 1}, "exclude each other"),
        ({"under_ms": 3.0}, "--under-ms needs a study with a latency budget"),
    ):
        with pytest.raises(InputError, match=message):
            choose_trials(RECORDS, axis=axis, **choice)  # type: ignore[arg-type]
    dear = [replace(record, feasible=False) for record in RECORDS]
    with pytest.raises(InputError, match="the study has no front yet"):
        choose_trials(dear, axis=axis)


def test_the_best_of_the_front_is_that_by_the_measure() -> None:
    """Whatever is reported of it: the reported images choose nothing."""
    modest = replace(BEST, report_top1=50.0, difference=-37.0)
    assert choose_trials([modest, UNIFORM, START_UP], axis=CostAxis(measure="kl")) == [modest]


def test_trials_are_chosen_by_measured_latency() -> None:
    axis = CostAxis(name="latency_ms", measure="kl")

    def record(trial: int, ms: float, kl: float, measured: float | None = None) -> TrialRecord:
        return make_record(
            trial=trial, kind="searched", state="scored", feasible=True, gflops=1.0 + trial / 10, latency_ms=ms,
            latency_measured_ms=measured, top1=80.0, rescored_kl=kl, keep_ratios={"a": 0.5},
        )  # fmt: skip

    records = [record(1, 10.0, 0.3, 11.0), record(2, 20.0, 0.2, 23.0), record(3, 30.0, 0.1), record(4, 31.0, 0.15)]

    def chosen(**choice: Any) -> list[int]:
        return [r.trial for r in choose_trials(records, **choice, axis=axis)]

    assert chosen(top=9) == [3, 2, 1], "best first, without the one that is dearer and worse"
    assert chosen(under_ms=30.0) == [3], "predicted where it was not measured"
    assert chosen(under_ms=29.0) == [2]
    assert chosen(under_ms=22.9) == [1], "predicted 20 ms, but measured over 22.9"
    assert chosen(under_gflops=1.15) == [1]
    for choice, message in (
        ({"under_ms": 10.9}, "no trial of the front takes at most 10.9 ms; the fastest takes 11.00"),
        ({"under_gflops": 1.05}, "no trial of the front costs at most 1.05 GFLOPs; the cheapest costs 1.1000"),
        ({"under_ms": 30.0, "under_gflops": 1.0}, "--under-gflops and --under-ms exclude each other"),
    ):
        with pytest.raises(InputError, match=message):
            chosen(**choice)
    with pytest.raises(InputError, match="no front yet"):
        choose_trials([], axis=axis)
    with pytest.raises(InputError, match="no trial of the front takes at most 5 ms$"):
        choose_trials([], under_ms=5.0, axis=axis)


# -- a study ----------------------------------------------------------------------------------------------------------


def test_export_of_a_study_with_weights(run: Path, ltmsearch: Ltmsearch) -> None:
    study = Run.open(run)
    records = study.front
    code, out, err = ltmsearch("export", str(run), "--top", "2", "--weights")
    assert code == 0, err
    wanted = [
        run / "export" / str(record.trial) / name
        for record in records[:2]
        for name in ("recipe.yaml", "model.safetensors", "config.json")
    ]
    assert [Path(line.split("  ")[0]) for line in out.splitlines()] == wanted
    assert all(path.is_file() for path in wanted)
    assert out.splitlines()[1].endswith(" MB  timm's local-dir and the recipe give exactly the same logits")
    recipe = load_recipe(wanted[0])
    assert recipe.provenance["trial"] == records[0].trial
    proxy, axis = recipe.provenance["proxy"], study.settings.axis
    assert (proxy["measure"], proxy["value"]) == (axis.measure, records[0].rescored(axis.measure))
    assert (proxy["report_top1"], proxy["difference"]) == (records[0].report_top1, records[0].difference)
    assert study.answers is not None
    assert proxy["report_images"] == len(study.answers.labels)
    assert proxy["scored_with"] == "final weights"
    assert recipe.schedule == replace(records[0].schedule, img_size=None)
    assert recipe.img_size == (records[0].schedule.img_size or 224)
    model = timm.create_model(f"local-dir:{wanted[0].parent}", pretrained=True)
    assert torch.isfinite(model.eval()(torch.randn(1, 3, recipe.img_size, recipe.img_size))).all()
    assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    code, out, _ = ltmsearch("export", str(run), "--trial", str(records[0].trial), "--json")
    assert code == 0
    (record,) = json.loads(out)
    size = wanted[0].stat().st_size
    assert record == {
        "file": str(wanted[0]), "bytes": size, "check": "load_recipe reads the same recipe", "difference": None,
        "opset": None, "nodes": None, "images": None, "agreement": None, "agreement_se": None,
        "top1_difference": None, "top1_difference_se": None,
    }  # fmt: skip


# -- a training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_of_a_training_in_every_format(training: Path, ltmsearch: Ltmsearch) -> None:
    arguments = ("--weights", "--onnx", "--program", "--json")
    code, out, err = ltmsearch("export", str(training), *arguments)
    assert code == 0, err
    records = json.loads(out)
    names = ["recipe.yaml", "model.safetensors", "config.json", "model.onnx", "model.pt2"]
    assert [record["file"] for record in records] == [str(training / "export" / name) for name in names]
    assert files_in(training / "export") == sorted(names)
    for record in records:
        assert record["bytes"] == Path(record["file"]).stat().st_size
    *_, onnx, program = records
    assert onnx["check"].startswith("onnxruntime 1.")
    assert onnx["opset"] >= 18
    assert "agrees: largest difference" in program["check"]
    assert max(onnx["difference"], program["difference"]) < 1e-3
    model = timm.create_model(f"local-dir:{training / 'export'}", pretrained=True).eval()
    images = torch.randn(4, 3, 32, 32)
    opened = torch.export.load(training / "export/model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(opened(images), model(images), atol=1e-3, rtol=1e-4)
    assert model.pretrained_cfg["label_names"] == list(NAMES)


def test_export_of_best_or_given_weights_of_a_training(training: Path) -> None:
    notes = Notes()
    lines = notes.lines

    def exported(**choice: Any) -> dict[str, torch.Tensor]:
        export_run(training, weights=True, callbacks=notes, **choice)
        return timm.create_model(f"local-dir:{training / 'export'}", pretrained=True).state_dict()

    for given, name in (({}, "best"), ({"checkpoint": training / "last.safetensors"}, "last")):
        with safe_open(training / f"{name}.safetensors", framework="pt") as file:
            wanted = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        state = exported(**given)
        assert state.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in state.items())
    assert lines == []
    (training / "export/model.onnx").write_bytes(b"")
    export_run(training, callbacks=notes)
    assert lines.pop().endswith("perhaps with other weights: config.json, model.onnx, model.safetensors")
    (training / "export/model.onnx").unlink()
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    save_file(plain.state_dict(), training / "plain.safetensors")
    exported(checkpoint=training / "plain.safetensors")
    assert len(lines) == 1
    assert lines[0].endswith("is of the plain net: its ltm merging operators are untrained")


# -- refused input ----------------------------------------------------------------------------------------------------


def test_conflicting_input_writes_nothing(run: Path, training: Path, ltmsearch: Ltmsearch) -> None:
    empty = training.parent / "empty"
    empty.mkdir()
    for arguments, message in (
        ((training, "--trial", "3"), "--trial needs the run directory of a study, but "),
        ((training, "--top", "3", "--onnx"), "--top needs the run directory of a study, but "),
        ((training, "--under-ms", "3"), "--under-ms needs the run directory of a study, but "),
        ((training, "--checkpoint", "none"), "the checkpoint must be a file, but none does not exist"),
        ((training, "--checkpoint", run / "supernet.safetensors"), "does not fit ltm_vit_tiny_patch16_224: "),
        (
            (run, "--checkpoint", training / "best.safetensors"),
            "--checkpoint needs the folder of a training, but ",
        ),
        ((run, "--trial", "999", "--weights"), "trial 999 has no score"),
        ((run, "--under-ms", "3"), "--under-ms needs a study with a latency budget (--budget-ms)"),
        ((empty,), "but has neither settings.yaml nor recipe.yaml"),
        (
            (empty / "nowhere",),
            "nowhere must be the run directory of a study or the folder of a training, but is not a folder",
        ),
    ):
        code, out, err = ltmsearch("export", *map(str, arguments))
        assert (code, out) == (2, ""), err
        assert message in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    (training / "export").write_text("in the way")
    code, _, err = ltmsearch("export", str(training))
    assert code == 2
    assert "training/export cannot be written: File exists" in err
    (training / "export").unlink()
    (training / "best.safetensors").unlink()
    code, _, err = ltmsearch("export", str(training), "--weights")
    assert code == 2
    assert "best.safetensors does not exist" in err
    assert not (run / "export").exists()
    assert not (training / "export").exists()


def test_shared_weights_are_refused(run: Path) -> None:
    record = Run.open(run).front[0]
    export_run(run, trial=record.trial)
    folder = run / "export" / str(record.trial)
    with pytest.raises(
        InputError, match="has the shared weights of a study; give `ltmsearch export` the run directory"
    ):
        export_run(folder, checkpoint=run / "supernet.safetensors", weights=True)


def test_missing_onnx_libraries_write_nothing(
    training: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.setattr("ltmsearch.programs.onnx.find_spec", lambda _: None)
    code, _, err = ltmsearch("export", str(training), "--weights", "--onnx")
    assert code == 2
    assert err == "error: --onnx needs onnx, onnxscript and onnxruntime: pip install 'ltmsearch[onnx]'\n"
    assert not (training / "export").exists()


def test_failed_check_is_exit_code_1(training: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ExportError("the program must agree with the network")

    monkeypatch.setattr("ltmsearch.export.run.export_program", refuse)
    code, _, err = ltmsearch("export", str(training), "--program")
    assert code == 1
    assert err.splitlines()[-1] == "failed: the program must agree with the network"
    assert files_in(training / "export") == ["recipe.yaml"]
