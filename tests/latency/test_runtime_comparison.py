"""`ltmsearch profile RECIPE --runtime all`: each runtime of the machine is timed, and one is recommended."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Ltmsearch

from ltmsearch.config.recipe import Recipe
from ltmsearch.latency import LatencyTarget, Measurement, comparison


def reading(ms: float, error: float = 0.01, *, stable: bool = True) -> Measurement:
    return Measurement(ms=ms, least_ms=ms, iqr_ms=0.0, error=error, visits=3, runs=3, stable=stable)


def test_the_fastest_merged_network_is_recommended() -> None:
    text = comparison.recommend({"torch": (reading(20), reading(18)), "onnxruntime": (reading(16), reading(12))})
    assert text == (
        "Run the merged network in onnxruntime: 12.00 ms a batch. Merging saves 25 %: the unmerged network takes 16.00 "
        "ms in onnxruntime, its fastest."
    )


def test_merging_is_compared_with_the_fastest_unmerged_network() -> None:
    text = comparison.recommend({"torch": (reading(20), reading(12)), "compile": (reading(10), reading(14))})
    assert text.startswith("Run the merged network in torch: 12.00 ms a batch. Merging costs time: the unmerged")
    assert "network takes 10.00 ms in compile" in text
    assert text.endswith("ltmsearch run --budget-ms.")


def test_of_equal_runtimes_the_first_is_named() -> None:
    text = comparison.recommend({"torch": (reading(20), reading(12.0)), "compile": (reading(20), reading(11.99))})
    assert text.startswith("Run the merged network in torch (not told apart from compile): 12.00 ms")


@pytest.mark.parametrize(("error", "shown"), [(0.01, True), (0.06, False)])
def test_a_difference_must_exceed_its_error(error: float, shown: bool) -> None:
    text = comparison.recommend({"torch": (reading(10), reading(9, error))})
    assert ("Merging saves 10 %" in text) == shown
    assert ("Merging is not shown to save time" in text) != shown


def test_a_noisy_plain_network_does_not_blur_the_ratio_of_one_runtime() -> None:
    """Its samples and those of the merged network take turns: the ratio is exact where both drift."""
    noisy = reading(20, 0.05, stable=False)
    text = comparison.recommend({"torch": (noisy, reading(18.5, 0.005))})
    assert "Merging saves 8 %" in text or "Merging saves 7 %" in text
    assert text.endswith("Some latencies are unstable: measure again on a machine with less load.")
    other = comparison.recommend({"torch": (noisy, reading(30)), "compile": (reading(40), reading(18.5, 0.005))})
    assert "not shown to save time" in other, "runtimes are timed one after the other"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    keep = {"stages.2.1.transformer.0": 0.5}
    made = Recipe(model="ltm_mobilevit_xxs", operator="ltm", schedule=keep, img_size=64, num_classes=10, provenance={})
    return made.save(tmp_path / "17.yaml")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without onnxruntime and without a C++ compiler; the runtimes that were tried."""
    tried = list[str]()

    def profile_recipe(path: Path, options: Mapping[str, Any], callbacks: Any) -> tuple[LatencyTarget, dict[str, Any]]:
        tried.append(options["runtime"])
        target = LatencyTarget.local(**options)
        if options["runtime"] == "compile":
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand many more lines")
        nets = {"plain": reading(10), path.name: reading(4)}
        return target, {"nets": {name: {"reading": one.model_dump(), "gflops": one.ms} for name, one in nets.items()}}

    monkeypatch.setattr(comparison, "profile_recipe", profile_recipe)
    monkeypatch.setattr("ltmsearch.programs.onnx.find_spec", lambda library: None)
    return tried


def test_runtimes_that_the_machine_lacks_are_skipped_by_name(
    recipe: Path, machine: list[str], ltmsearch: Ltmsearch
) -> None:
    code, out, err = ltmsearch("profile", recipe, "--runtime", "all", "--device", "cpu")
    assert (code, machine) == (0, ["torch", "compile", "onnxruntime"])
    compiler = "RuntimeError: InvalidCxxCompiler: no working C++ compiler"
    library = "the runtime onnxruntime needs onnx, onnxscript and onnxruntime: pip install 'ltmsearch[onnx]'"
    for text in (" ".join(out.split()), " ".join(err.split())):
        assert f"compile skipped: {compiler}" in text
        assert f"onnxruntime skipped: {library}" in text
    assert " ".join(out.split()).endswith(
        "Run the merged network in torch: 4.00 ms a batch. Merging saves 60 %: the unmerged network takes 10.00 ms in "
        "torch, its fastest."
    )
    code, out, _ = ltmsearch("profile", recipe, "--runtime", "all", "--device", "cpu", "--json")
    record = json.loads(out)
    assert code == 0
    assert list(record["runtimes"]) == ["torch"]
    assert record["skipped"] == {"compile": compiler, "onnxruntime": library}


def test_a_small_network_is_timed_in_torch_and_onnxruntime(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    for name, value in (("study.ROUNDS", 1), ("study.EXTRA_ROUNDS", 0), ("measurement.SAMPLE_SECONDS", 0.0)):
        monkeypatch.setattr(f"ltmsearch.latency.{name}", value)
    monkeypatch.setattr(comparison, "get_args", lambda _: ("torch", "onnxruntime"))  # to compile takes a minute
    code, out, err = ltmsearch("profile", recipe, "--runtime", "all", "--device", "cpu", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert list(record["runtimes"]) == ["torch", "onnxruntime"]
    assert all(len(one["nets"]) == 2 for one in record["runtimes"].values())
    assert record["skipped"] == {}
    assert record["recommendation"].startswith("Run the merged network in ")


@pytest.mark.usefixtures("machine")
def test_wrong_options_are_refused(recipe: Path, ltmsearch: Ltmsearch) -> None:
    assert ltmsearch("profile", "mobilevit_xxs", "--runtime", "all")[::2] == (
        2,
        "error: --runtime all needs a recipe, but got 'mobilevit_xxs'; profile a backbone in one runtime at a time\n",
    )
    code, _, err = ltmsearch("profile", recipe, "--runtime", "al")
    assert (code, "torch, compile, onnxruntime, all, but got 'al'" in err) == (2, True), err
    code, _, err = ltmsearch("profile", recipe, "--runtime", "all", "--device", "cpu", "--dtype", "fp16")
    assert code == 2
    assert "fp16 needs a GPU" in err
