"""`ltmsearch profile RECIPE --runtime all`: each runtime of the machine is timed, and one is recommended."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Ltmsearch

from ltmsearch.config.recipe import Recipe
from ltmsearch.errors import InputError
from ltmsearch.latency import LatencyTarget, Measurement, comparison


def reading(ms: float, error: float = 0.01) -> Measurement:
    return Measurement(ms=ms, least_ms=ms, iqr_ms=0.0, error=error, visits=3, runs=3, stable=True)


def test_the_fastest_merged_network_is_recommended() -> None:
    text = comparison.recommend({"torch": (reading(20), reading(18)), "onnxruntime": (reading(16), reading(12))})
    assert text == (
        "Take onnxruntime: the merged network takes 12.00 ms, 0.75 of the unmerged one's least time, 16.00 ms in "
        "onnxruntime."
    )


def test_merging_is_compared_with_the_unmerged_network_in_its_own_best_runtime() -> None:
    text = comparison.recommend({"torch": (reading(20), reading(12)), "compile": (reading(10), reading(14))})
    assert text.startswith("Merging is not shown to save time at this batch size")
    assert "at least 12.00 ms, in torch, the unmerged one 10.00 ms, in compile." in text


@pytest.mark.parametrize(("error", "shown"), [(0.01, True), (0.05, False)])
def test_a_difference_must_exceed_its_error(error: float, shown: bool) -> None:
    text = comparison.recommend({"torch": (reading(10, error), reading(9, error))})
    assert text.startswith("Take torch") == shown


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    keep = {"stages.2.1.transformer.0": 0.5}
    made = Recipe(model="ltm_mobilevit_xxs", operator="ltm", schedule=keep, img_size=64, num_classes=10, provenance={})
    return made.save(tmp_path / "17.yaml")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without onnxruntime, on which networks are not run; the runtimes that were timed."""
    local, timed = LatencyTarget.local, list[str]()

    def without_onnxruntime(**options: Any) -> LatencyTarget:
        if options["runtime"] == "onnxruntime":
            raise InputError("onnxruntime is not installed")
        return local(**options)

    def profile_recipe(path: Path, options: Mapping[str, Any], callbacks: Any) -> tuple[LatencyTarget, dict[str, Any]]:
        timed.append(options["runtime"])
        nets = {"plain": reading(10), path.name: reading(4 if options["runtime"] == "compile" else 8)}
        rows = {name: {"reading": one.model_dump(), "gflops": one.ms / 10} for name, one in nets.items()}
        return local(**options), {"nets": rows}

    monkeypatch.setattr(comparison.LatencyTarget, "local", without_onnxruntime)
    monkeypatch.setattr(comparison, "profile_recipe", profile_recipe)
    return timed


def test_every_runtime_of_the_machine_is_timed(recipe: Path, machine: list[str], ltmsearch: Ltmsearch) -> None:
    code, out, err = ltmsearch("profile", recipe, "--runtime", "all", "--device", "cpu")
    assert (code, machine) == (0, ["torch", "compile"])
    assert "onnxruntime skipped: onnxruntime is not installed\n" in err
    assert " ".join(out.split()).endswith(
        "Take compile: the merged network takes 4.00 ms, 0.40 of the unmerged one's least time, 10.00 ms in torch."
    )
    code, out, _ = ltmsearch("profile", recipe, "--runtime", "all", "--device", "cpu", "--json")
    record = json.loads(out)
    assert code == 0
    assert list(record["runtimes"]) == ["torch", "compile"]
    assert record["skipped"] == {"onnxruntime": "onnxruntime is not installed"}
    assert record["recommendation"].startswith("Take compile")


@pytest.mark.usefixtures("machine")
def test_wrong_options_are_refused(recipe: Path, ltmsearch: Ltmsearch) -> None:
    code, _, err = ltmsearch("profile", "mobilevit_xxs", "--runtime", "all")
    assert (code, err) == (
        2,
        "error: --runtime all needs a recipe, but got 'mobilevit_xxs'; profile a backbone in one runtime at a time\n",
    )
    code, _, err = ltmsearch("profile", recipe, "--runtime", "all", "--device", "cpu", "--dtype", "fp16")
    assert code == 2
    assert "fp16 needs a GPU" in err
