"""Commands that describe a backbone or show a study, and configuration files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image
from support.command_line import Ltmsearch
from support.profiles import costs_of, whole_space
from support.sizes import TINY
from support.spaces import SOFT_AND_HARD

from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import traced_macs
from ltmsearch.io.presets import shipped_folder


def test_cost_counts_by_formula_and_by_tracing(ltmsearch: Ltmsearch) -> None:
    keep = "0.7,1,0.5,1,1,0.3,1,1,0.5"
    code, out, _ = ltmsearch("cost", "mobilevit_s", "--keep", keep, "--json")
    record = json.loads(out)
    assert code == 0
    assert list(record) == [
        "backbone", "img_size", "operator", "keep_ratios", "forms", "gflops", "gflops_traced", "base_gflops", "tokens",
    ]  # fmt: skip
    assert record["gflops"] == record["gflops_traced"] < record["base_gflops"]
    assert round(record["base_gflops"], 4) == 1.5467
    assert list(record["keep_ratios"].values()) == [float(r) for r in keep.split(",")]
    assert record["tokens"]["stages.2.1.transformer.0"] == [196, 137]
    assert record["forms"] == {layer: "matched" for layer, ratio in record["keep_ratios"].items() if ratio < 1}
    arguments = ("cost", "mobilevit_s", "--keep", keep, "--form", "hard", "--json")
    code, out, _ = ltmsearch(*arguments)
    hard = json.loads(out)
    assert code == 0
    assert hard["forms"] == {layer: "hard" for layer, ratio in hard["keep_ratios"].items() if ratio < 1}
    assert len(hard["forms"]) == 4
    assert hard["gflops"] == hard["gflops_traced"] < record["gflops"]
    code, out, _ = ltmsearch("cost", "mobilevit_s", "--json")
    plain = json.loads(out)
    assert plain["gflops"] == plain["base_gflops"]
    assert set(plain["keep_ratios"].values()) == {1.0}


def test_cost_of_tokens_to_remove(ltmsearch: Ltmsearch) -> None:
    code, out, _ = ltmsearch("cost", "vit_small_patch16_224", "--keep=-8", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["gflops"] == record["gflops_traced"] < record["base_gflops"]
    assert set(record["keep_ratios"].values()) == {-8}
    assert set(record["forms"].values()) == {"matched"}
    assert list(record["tokens"].values()) == [[196 - 8 * i, 188 - 8 * i] for i in range(12)]
    code, out, _ = ltmsearch("cost", "vit_small_patch16_224", "--keep=-8,1,1,1,1,1,0.9,1,1,1,1,1", "--operator", "tome")
    assert code == 0
    assert re.search(r"blocks\.0 +-8 +196 +188 *\n", out)
    assert re.search(r"blocks\.6 +0\.9 +188 +169 *\n", out)


def test_space_marks_merges_that_cost_more_than_they_save(ltmsearch: Ltmsearch) -> None:
    space = ("space", "mobilevit_s", "--space", SOFT_AND_HARD)
    code, out, _ = ltmsearch(*space, "--json")
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
    code, out, _ = ltmsearch(*space)
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "stages.4.1.transformer.2" in out
    lines = [line.split() for line in out.splitlines()]
    at = next(i for i, words in enumerate(lines) if words[:1] == ["stages.2.1.transformer.1"])
    assert lines[at][3:5] == ["saves", "21.4"]
    assert lines[at + 1][:3] == ["soft", "31.4!", "24.0"], "its mask costs more than the merge saves"
    assert lines[at + 2][0] == "hard"
    assert [word for words in lines for word in words if word[0].isdigit() and word.endswith("!")] == ["31.4!"]


@pytest.mark.parametrize(
    "given",
    [
        ("--model-kwargs", "depth=2", "embed_dim=96", "num_heads=3", "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", "--model-kwargs=depth=2", "embed_dim=96", "--model-kwargs", "num_heads=3"),
    ],
)
def test_several_values_may_follow_an_option_as_in_timm(ltmsearch: Ltmsearch, given: tuple[str, ...]) -> None:
    code, out, _ = ltmsearch("cost", *given, "--img-size", 64, "--in-chans", 1, "--num-classes", 10, "--json")
    net = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=96, num_heads=3, img_size=64, in_chans=1, num_classes=10
    )
    assert code == 0
    assert json.loads(out)["base_gflops"] == traced_macs(net, (64, 64)) / 1e9


def test_numbers_follow_an_option_up_to_the_next_word(ltmsearch: Ltmsearch, finished: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), (10, 20, 30)).save(tmp_path / "a.png")
    recipe = next((finished / "recipes").iterdir())
    wrong = ("visualize", "--mean", "0.1", "0.2", recipe, "--image", tmp_path / "a.png")
    assert ltmsearch(*wrong)[2].strip() == "error: recipe: mean must be one number or 3, one per channel, but got 2"
    right = ("visualize", "--mean", "0.1", "0.2", "0.3", recipe, "--image", tmp_path / "a.png", "--out", tmp_path)
    assert ltmsearch(*right)[0] == 0


def test_front_restores_lost_files(finished: Path, ltmsearch: Ltmsearch) -> None:
    wanted = (finished / "front.csv").read_text()
    lost = ("front.csv", "front.html", "layers.html", "findings.json", "report.html")
    for name in lost:
        (finished / name).unlink()
    code, out, _ = ltmsearch("front", finished)
    assert code == 0
    assert "GFLOPs" in out
    assert (finished / "front.csv").read_text() == wanted
    assert [name for name in lost if not (finished / name).exists()] == []
    sentences = json.loads((finished / "findings.json").read_text(encoding="utf-8"))["sentences"]
    assert all(sentence in " ".join(out.split()) for sentence in sentences)
    code, out, _ = ltmsearch("front", finished, "--json")
    rows = json.loads(out)
    assert [row["trial"] for row in rows] == [int(line.split(",")[0]) for line in wanted.splitlines()[1:]]
    assert list(rows[0]) == wanted.splitlines()[0].split(",")
    assert rows[0]["latency_ms"] is None, "not measured"
    assert set(rows[0]["keep_ratios"]) == set(whole_space(costs_of("mobilevit_xxs", 224), "mobilevit_xxs").layers)
    code, out, err = ltmsearch("front", finished, "--quiet")
    assert (code, out, err) == (0, "", "")


def test_a_missing_browser_is_reported_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    tried = []

    def no_browser(figure: object, path: Path, height: int) -> str:
        tried.append(path.name)
        return "it needs Chrome"

    monkeypatch.setattr("ltmsearch.io.figures._write_png", no_browser)
    code, _, err = ltmsearch("front", finished)
    assert code == 0
    assert tried == ["front.png"]
    assert err.count("it needs Chrome") == 1


@pytest.mark.long
def test_options_override_a_config_file(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(f"{name}: {value}" for name, value in TINY.items()))
    out_dir = tmp_path / "run"
    code, _, err = ltmsearch("run", "--config", path, "--trials", 1, "--out", out_dir, "--quiet")
    assert code == 0, err
    assert "trials: 1\n" in (out_dir / "settings.yaml").read_text()
    path.write_text("backbone: mobilevit_xxs\nbudget: 1\n")
    code, _, err = ltmsearch("run", "--config", str(path))
    assert code == 2
    assert "mine.yaml:2: unknown setting 'budget'" in err


def shipped_studies() -> list[Any]:
    """The smallest one by default, the others with the slow tests."""
    names = sorted(path.stem for path in shipped_folder("studies").glob("*.yaml"))
    return [pytest.param(name, marks=[] if name == "mobilevit_s" else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_have_reachable_budgets(name: str) -> None:
    from ltmsearch.costs.describe import describe_space
    from ltmsearch.io.presets import find_file
    from ltmsearch.io.yaml_models import read_yaml

    path = find_file("studies", name)
    settings = StudySettings.make(name, **read_yaml(path))
    record = describe_space(
        settings.backbone, img_size=settings.img_size, operator=settings.operator, space=settings.space
    )
    assert record.lowest_gflops < settings.budget_gflops < record.base_gflops
    assert f"ltmsearch run --config {name}" in path.read_text()
