"""The command line: what a person types, what comes back, and with which exit code."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, costs_of, whole_space
from PIL import Image

from ltmsearch.cli import main
from ltmsearch.settings import StudySettings
from ltmsearch.shipped import shipped_folder
from ltmsearch.study import run_study


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `ltmsearch ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["ltmsearch", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    output = capsys.readouterr()
    return int(exit_info.value.code or 0), output.out, output.err


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished study."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.drawing._write_png", lambda *_: None)
        run_study(StudySettings.make("test", **{**TINY, "out": str(folder / "run")}))
    return folder / "run"


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.drawing._write_png", lambda *_: None)


BUDGET = ("--budget-gflops",)
XXS = ("run", "--backbone", "mobilevit_xxs")
RUN = (*XXS, *BUDGET, "0.27")
FAST = (*XXS, "--budget-ms", "5", "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--backbone", "mobilvit_s", *BUDGET, "1.2"), "'mobilvit_s': did you mean mobilevit_s?"),
        (("run", "--backbone", "mobilevit_xxs"), "--budget-gflops or --budget-ms must be given"),
        (("run", "--budget-gflops", "1.2"), "--backbone must be given"),
        ((*XXS, *BUDGET, "0.1"), "is below what merging can reach: mobilevit_xxs at 224 px reaches 0.2"),
        ((*XXS, *BUDGET, "9"), "constrains nothing: mobilevit_xxs at 224 px reaches 0.2"),
        ((*XXS, *BUDGET, "-1"), "budget_gflops: Input should be greater than 0, but got -1"),
        ((*RUN, "--trials", "-3"), "trials: Input should be greater than or equal to 1, but got -3"),
        ((*RUN, "--sampler", "tpee"), "should be 'auto', 'tpe', 'gp', 'nsga2' or 'random', but got 'tpee'"),
        ((*RUN, "--operator", "tom"), "unknown operator 'tom': did you mean tome?"),
        ((*RUN, "--data-dir", "nowhere"), "must be an existing image folder, but got 'nowhere'"),
        ((*RUN, "--dataset", "torch/cifar11"), "unknown dataset 'torch/cifar11': did you mean torch/cifar10?"),
        ((*RUN, "--device", "gpu"), "--device 'gpu' cannot be used"),
        ((*RUN, "--space", "mobilvit"), "unknown file 'mobilvit': did you mean mobilevit?"),
        ((*RUN, "--config", "mobilvit_s"), "did you mean mobilevit_s?"),
        ((*RUN, "--checkpoint", "none.pth"), "the checkpoint must be a file, but none.pth does not exist"),
        ((*RUN, "--pretrained", "--checkpoint", "none.pth"), "pretrained and checkpoint cannot both be given"),
        ((*RUN, "--study", "../up"), "study: String should match pattern"),
        (("cost", "mobilevit_xxs", "--keep", "0.5,x"), "--keep must be numbers"),
        (("cost", "mobilevit_xxs", "--keep", "0.5,0.5"), "but got 2 for 9 layers"),
        (("cost", "mobilevit_xxs", "--keep", "1.5"), r"must be in (0, 1]"),
        (("cost", "mobilevit_xxs", "--operator", "pool", "--form", "hard"), "by 'pool' must be soft, but got 'hard'"),
        (("cost", "mobilevit_xxs", "--form", "firm"), "must be soft, hard, matched, but got 'firm'"),
        (("space", "resnet50"), "unknown backbone 'resnet50'"),
        (("space", "efficientvit_m0"), "efficientvit_m0 cannot merge tokens yet: it is Microsoft's EfficientViT"),
        ((*XXS, "--budget-ms", "0"), "budget_ms: Input should be greater than 0, but got 0"),
        ((*RUN, "--latency-batch", "2"), "latency_batch needs budget_ms"),
        ((*RUN, "--latency-profile", "p.json"), "latency_profile needs budget_ms"),
        ((*FAST, "--latency-profile", "p.json", "--latency-batch", "2"), "latency_batch cannot be given beside it"),
        ((*FAST, "--latency-profile", "none.json"), "the latency profile none.json cannot be read: No such file"),
        ((*FAST, "--latency-runtime", "java"), "should be 'torch', 'compile' or 'onnxruntime', but got 'java'"),
        ((*FAST, "--latency-dtype", "fp16"), "fp16 is not measured on a CPU"),
        ((*FAST, "--latency-threads", "9999"), "the threads of a latency must be from 1 to "),
        ((*FAST, "--latency-device", "gpu"), "--device 'gpu' cannot be used"),
        (("profile", "mobilvit_s"), "'mobilvit_s': did you mean mobilevit_s?"),
        (("profile", "mobilevit_xxs", "--operator", "tom"), "unknown operator 'tom': did you mean tome?"),
        (("profile", "mobilevit_xxs", "--space", "mobilvit"), "unknown file 'mobilvit': did you mean mobilevit?"),
        (("profile", "mobilevit_xxs", "--runtime", "java"), "must be torch, compile, onnxruntime, but got 'java'"),
        (("profile", "mobilevit_xxs", "--dtype", "fp16", "--device", "cpu"), "fp16 is not measured on a CPU"),
        (("profile", "mobilevit_xxs", "--threads", "9999", "--device", "cpu"), "the threads of a latency must be from"),
        (("profile", "mobilevit_xxs", "--img-size", "16", "--device", "cpu"), "img_size"),
        (("profile", "mobilevit_xxs", "--num-classes", "0", "--device", "cpu"), "num_classes"),
        (("profile", "none.yaml"), "none.yaml"),
        (("profile", "none.yaml", "--again"), "--operator, --space, --again and --out go with a backbone"),
        (("front", "nowhere"), "nowhere/settings.yaml does not exist"),
        (("export", "nowhere"), "must be the run directory of a study or the folder of a training, but is no folder"),
        (("dashboard", "nowhere"), "must be the run directory of a study"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize("arguments", [("run", "--no-such-option"), ("runn",), ("cost",)])
def test_wrong_options_are_exit_code_2(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "Traceback" not in err


def test_unwritable_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    code, _, err = call("run", *arguments, "--out", str(tmp_path / "file/run"), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "cannot be written: Not a directory" in err


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda root: (root / "train/dog/0.jpg").write_text("no image"), 0, "unreadable left out: 'train/dog/0.jpg'"),
        (lambda root: (root / "train/dog/notes.txt").write_text("hello"), 0, "12 training"),
        (lambda root: (root / "train/bird").mkdir(), 2, "class folders must hold images"),
        (lambda root: [f.unlink() for f in (root / "train/dog").iterdir()], 2, "class folders must hold images"),
        (lambda root: (root / "validation").rename(root / "elsewhere"), 2, "must hold validation/ or val/ or valid/"),
    ],
    ids=["text named as an image", "text file", "empty class", "emptied class", "no validation"],
)  # fmt: skip
def test_image_folders(
    tmp_path: Path,
    damage: Any,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = image_folder(tmp_path / "images")
    damage(root)
    tiny = {**TINY, "trials": 1}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in tiny.items()]
    arguments += ["--data-dir", str(root), "--out", str(tmp_path / "run")]
    got, out, err = call("run", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert got == code, err
    assert message in out + err
    assert (f"all on one page in {tmp_path / 'run/report.html'}\n" in out) == (code == 0)
    assert (tmp_path / "run").exists() == (code == 0)


def test_one_class_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = image_folder(tmp_path / "images", classes=("cat",))
    code, _, err = call(*RUN, "--data-dir", str(root), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "two classes or more, but there is only 'cat'" in err


def test_cost_as_json_counts_both_ways(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keep = "0.7,1,0.5,1,1,0.3,1,1,0.5"
    code, out, _ = call("cost", "mobilevit_s", "--keep", keep, "--json", monkeypatch=monkeypatch, capsys=capsys)
    record = json.loads(out)
    assert code == 0
    assert list(record) == [
        "backbone", "img_size", "operator", "keep_ratios", "forms", "gflops", "gflops_traced", "base_gflops", "tokens",
    ]  # fmt: skip
    assert record["gflops"] == record["gflops_traced"] < record["base_gflops"]
    assert round(record["base_gflops"], 4) == 1.5467
    assert list(record["keep_ratios"].values()) == [float(r) for r in keep.split(",")]
    assert record["tokens"]["stages.2.1.transformer.0"] == [196, 132]
    assert record["forms"] == {}
    arguments = ("cost", "mobilevit_s", "--keep", keep, "--form", "hard", "--json")
    code, out, _ = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    hard = json.loads(out)
    assert code == 0
    assert hard["forms"] == {layer: "hard" for layer, ratio in hard["keep_ratios"].items() if ratio < 1}
    assert len(hard["forms"]) == 4
    assert hard["gflops"] == hard["gflops_traced"] < record["gflops"]
    code, out, _ = call("cost", "mobilevit_s", "--json", monkeypatch=monkeypatch, capsys=capsys)
    plain = json.loads(out)
    assert plain["gflops"] == plain["base_gflops"]
    assert set(plain["keep_ratios"].values()) == {1.0}


def test_space_shows_where_merging_costs_more_than_it_saves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call("space", "mobilevit_s", "--json", monkeypatch=monkeypatch, capsys=capsys)
    record = json.loads(out)
    assert code == 0
    assert record["lowest_gflops"] < 1.2 < record["base_gflops"] <= record["highest_gflops"]
    second = record["layers"][1]
    assert second["tokens"] == 196
    merges = {(merge["keep_ratio"], merge["form"]): merge for merge in second["merges"]}
    assert list(merges) == [(ratio, form) for ratio in (0.7, 0.5, 0.35, 0.25) for form in ("soft", "hard")]
    for merge in merges.values():
        assert merge["offered"] == (merge["saved_gflops"] > merge["mask_gflops"])
    assert [choice for choice, merge in merges.items() if not merge["offered"]] == [(0.7, "soft")]
    assert 0.4 < sum(layer["share"] for layer in record["layers"]) < 0.5
    code, out, _ = call("space", "mobilevit_s", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 120
    assert "stages.4.1.transformer.2" in out
    lines = [line.split() for line in out.splitlines()]
    at = next(i for i, words in enumerate(lines) if words[:1] == ["stages.2.1.transformer.1"])
    assert lines[at][3:5] == ["saves", "21.4"]
    assert lines[at + 1][:3] == ["soft", "31.4!", "24.0"], "dearer than what it saves: marked, not offered"
    assert lines[at + 2][0] == "hard"
    assert [word for words in lines for word in words if word[0].isdigit() and word.endswith("!")] == ["31.4!"]


@pytest.fixture
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few subnets and runs as there can be."""
    for name, value in (("SECONDS", 0.0), ("FEWEST", 16), ("MOST", 16), ("ROUNDS", 1), ("PLAIN_VISITS", 1)):
        monkeypatch.setattr(f"ltmsearch.latency.build.{name}", value)
    monkeypatch.setattr("ltmsearch.latency.study.ROUNDS", 1)
    monkeypatch.setattr("ltmsearch.latency.study.AGAIN", 0)
    monkeypatch.setattr("ltmsearch.latency.reading.VISIT_SECONDS", 0.0)


PROFILE = ("profile", "mobilevit_xxs", "--device", "cpu", "--img-size", "96", "--num-classes", "10")


@pytest.mark.usefixtures("quick_timing")
def test_a_backbone_is_profiled_once_and_found_again(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ltmsearch.latency import LatencyProfile, build

    made: list[str] = []
    build_profile = build.build_profile

    def counted(backbone: str, *rest: Any) -> LatencyProfile:
        made.append(backbone)
        return build_profile(backbone, *rest)

    monkeypatch.setattr("ltmsearch.latency.command.build_profile", counted)
    copy = tmp_path / "folder/copy.json"
    code, out, err = call(*PROFILE, "--json", "--out", str(copy), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    record = json.loads(out)
    (kept,) = (user_cache / "ltmsearch/profiles").iterdir()
    assert record["file"] == str(kept)
    assert copy.read_bytes() == kept.read_bytes()
    profile = LatencyProfile.load_file(kept)
    assert record["backbone"] == profile.backbone == "mobilevit_xxs"
    assert record["target"] == profile.target.model_dump()
    assert record["plain"] == profile.plain.model_dump()
    assert record["subnets"] == len(profile.subnets) >= 10
    assert record["lowest_ms"] < record["highest_ms"]
    space = whole_space(costs_of("mobilevit_xxs", 96), "mobilevit_xxs")
    assert record["saved_ms"].keys() == set(space.layers)
    for layer, options in zip(space.layers, space.choices, strict=True):
        assert list(record["saved_ms"][layer]) == [str(choice) for choice in options[1:]], layer
    assert {name.split()[1] for name in record["uniform"]} == {"soft", "hard"}
    assert all(record["lowest_ms"] <= net["latency_ms"] <= record["highest_ms"] for net in record["uniform"].values())
    assert made == ["mobilevit_xxs"]
    code, out, _ = call(*PROFILE, "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, json.loads(out)) == (0, record)
    code, out, _ = call(*PROFILE, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert f"kept in {kept}" in out
    assert f"plain net {profile.plain.ms:.2f} ± " in out
    assert made == ["mobilevit_xxs"], "found, not timed"
    kept.write_text("damaged")
    assert call(*PROFILE, "--json", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert len(made) == 2
    assert LatencyProfile.load_file(kept).backbone == "mobilevit_xxs"
    assert call(*PROFILE, "--again", "--json", monkeypatch=monkeypatch, capsys=capsys)[0] == 0
    assert len(made) == 3
    assert len(list((user_cache / "ltmsearch/profiles").iterdir())) == 1


@pytest.mark.usefixtures("quick_timing")
def test_a_recipes_net_is_timed_beside_the_plain_one(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ltmsearch.recipe import Recipe

    recipe = Recipe(
        model="ltm_mobilevit_xxs", operator="ltm", schedule={"stages.2.1.transformer.0": 0.5}, img_size=64,
        num_classes=10, provenance={},
    )  # fmt: skip
    recipe.save(tmp_path / "17.yaml")
    arguments = ("profile", str(tmp_path / "17.yaml"), "--device", "cpu")
    code, out, err = call(*arguments, "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    record = json.loads(out)
    assert list(record) == ["backbone", "recipe", "target", "nets"]
    assert list(record["nets"]) == ["plain mobilevit_xxs", "17.yaml"]
    assert (record["target"]["img_size"], record["target"]["num_classes"]) == (64, 10), "the recipe's own"
    plain, merged = record["nets"].values()
    assert merged["gflops"] < plain["gflops"]
    assert all(net["reading"]["ms"] > 0 for net in (plain, merged))
    assert merged["reading"]["visits"] == 1
    larger = call(*arguments, "--img-size", "96", "--json", monkeypatch=monkeypatch, capsys=capsys)[1]
    assert json.loads(larger)["target"]["img_size"] == 96
    code, out, _ = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert [word for word in ("plain mobilevit_xxs", "17.yaml", "× plain", "visits") if word not in out] == []
    assert not user_cache.exists(), "what is kept is a backbone's"


def test_front_writes_again_what_was_lost(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = (finished / "front.csv").read_text()
    (finished / "front.csv").unlink()
    (finished / "front.html").unlink()
    (finished / "layers.html").unlink()
    (finished / "findings.json").unlink()
    (finished / "report.html").unlink()
    code, out, _ = call("front", str(finished), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "GFLOPs" in out
    assert (finished / "front.csv").read_text() == wanted
    assert (finished / "front.html").exists()
    assert (finished / "layers.html").exists()
    assert (finished / "report.html").exists()
    told = json.loads((finished / "findings.json").read_text(encoding="utf-8"))["sentences"]
    assert " ".join(" ".join(told).split()) in " ".join(out.split())
    code, out, _ = call("front", str(finished), "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert [row["trial"] for row in json.loads(out)] == [int(line.split(",")[0]) for line in wanted.splitlines()[1:]]


def test_a_missing_browser_is_tried_and_told_of_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def no_browser(figure: object, path: Path, height: int) -> str:
        tried.append(path.name)
        return "it needs Chrome"

    monkeypatch.setattr("ltmsearch.drawing._write_png", no_browser)
    code, _, err = call("front", str(finished), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert tried == ["front.png"]
    assert err.count("it needs Chrome") == 1


def test_config_files_and_options_that_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(f"{name}: {value}" for name, value in TINY.items()))
    out_dir = tmp_path / "run"
    code, _, err = call(
        "run",
        "--config",
        str(path),
        "--trials",
        "1",
        "--out",
        str(out_dir),
        "--quiet",
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert code == 0, err
    assert "trials: 1\n" in (out_dir / "settings.yaml").read_text()
    path.write_text("backbone: mobilevit_xxs\nbudget: 1\n")
    code, _, err = call("run", "--config", str(path), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "mine.yaml:2: unknown setting 'budget'" in err


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped_folder("studies").glob("*.yaml")))
def test_shipped_studies_are_reachable_and_say_how_to_run_them(name: str) -> None:
    from ltmsearch.inspection import describe_space
    from ltmsearch.shipped import find_file
    from ltmsearch.yamlfile import read_yaml

    path = find_file("studies", name)
    settings = StudySettings.make(name, **read_yaml(path))
    record = describe_space(
        settings.backbone, img_size=settings.img_size, operator=settings.operator, space=settings.space
    )
    assert record.lowest_gflops < settings.budget_gflops < record.base_gflops
    assert f"ltmsearch run --config {name}" in path.read_text()


def test_help_is_quick_because_heavy_imports_wait() -> None:
    code = (
        "import sys, ltmsearch.cli; print(sorted({'torch', 'timm', 'optuna', 'pandas', 'plotly'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_dashboard_serves_the_study(finished: Path) -> None:
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "ltmsearch", "dashboard", str(finished), "--port", str(port)])
    try:
        for _ in range(120):
            try:
                studies = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5))
                break
            except OSError:
                time.sleep(0.5)
        summary = studies["study_summaries"][0]
        detail = json.load(
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}?after=0", timeout=5)
        )
    finally:
        process.terminate()
        process.wait()
    assert len(detail["trials"]) >= 6
    plain = next(trial for trial in detail["trials"] if trial["number"] == 0)
    assert plain["constraints"][0] > 0, "the plain net is over the budget and shown so"
    assert detail["objective_names"] == ["top-1 (%)", "GFLOPs"]
