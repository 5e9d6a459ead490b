"""The figures of README are those of `benchmarks/results/`."""

import json
from statistics import mean
from typing import Any

import numpy as np
import pytest
from support.pages import README, ROOT

RESULTS = ROOT / "benchmarks/results"


@pytest.fixture(scope="module")
def text() -> str:
    """README in one line, with minus signs as hyphens."""
    return " ".join(README.read_text(encoding="utf-8").replace("−", "-").split())


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def row(net: dict[str, Any], plain: dict[str, Any]) -> list[str]:
    """Cells of a network in the table of the first command."""
    cells = [f"{net['gflops']:.4f}", f"{100 - 100 * net['gflops'] / plain['gflops']:.0f} %"]
    if net is plain:
        return [cells[0], "", f"{net['report_top1']:.1f} ± {net['report_top1_se']:.1f}", ""]
    cells.append(f"{net['report_top1']:.1f} ± {net['report_top1_se']:.1f}")
    return [*cells, f"{net['difference']:+.1f} ± {net['difference_se']:.1f}"]


def test_the_table_of_the_first_command(text: str) -> None:
    measured = result("first_command")
    by_trial = {f"trial {net['trial']}": net for net in measured["front"]}
    by_label = {net["label"].removeprefix("uniform "): net for net in measured["baselines"]}
    rows = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]]
        for line in README.read_text(encoding="utf-8").replace("−", "-").splitlines()
        if line.startswith(("| trial", "| *best baseline", "| *plain"))
    ]
    assert len(rows) >= 4
    for name, *cells in rows:
        if name.startswith("trial"):
            net = by_trial[name.split(",")[0]]
        else:
            net = by_label["plain" if name.startswith("plain") else name.partition(":* ")[2].partition(" in all")[0]]
        assert cells == row(net, by_label["plain"]), name
    verdict = measured["verdict"]
    less = verdict["searched_less_best_baseline"]
    assert f"({less['difference']:+.1f} ± {less['se']:.1f} points)" in text
    recommended, searched = verdict["recommendation"]["trial"], less["searched"]
    best = measured["front"][0]["trial"]
    if recommended == searched == best:
        assert f"| trial {recommended}, best searched, recommended |" in text
        assert f"trial {recommended} is the best of the front" in text
    else:
        assert f"| trial {recommended}, recommended |" in text
        assert f"| trial {searched}, best searched |" in text
        assert f"trial {recommended} is the cheapest that is not told apart from trial {best}" in text


@pytest.mark.parametrize(("name", "share", "rival", "form"), [
    ("search_gain", "0.35", "best baseline", "it is {0}, +"),
    ("search_gain", "0.5", "best baseline", ", {0} and -"),
    ("search_gain_mild", "0.7", "best baseline", "and {0} points off"),
    ("search_gain", "0.35", "plain", "({0}, +"),
    ("search_gain", "0.5", "plain", ", {0}, +"),
    ("search_gain_mild", "0.7", "plain", ", {0})"),
    ("search_gain_efficientvit_b0", "0.85", "best baseline", "in EfficientViT-B0 {0},"),
    ("search_gain_swin_tiny", "0.7", "best baseline", "[{0.value:.1f} ± {0.se:.1f} points ahead]"),
])  # fmt: skip
def test_the_searched_schedules_less_others(text: str, name: str, share: str, rival: str, form: str) -> None:
    from ltmsearch.engine.paired import Difference

    seeds = [Difference(**seed["less"][rival]["after"]) for seed in result(name)["shares"][share]]
    pooled = Difference(
        value=mean(one.value for one in seeds), se=float(np.sqrt(np.mean([one.se**2 for one in seeds])))
    )
    assert form.format(pooled).replace("−", "-") in text


def test_how_scores_rank(text: str) -> None:
    by_score = result("rank_fidelity")["agreement"]
    (whole,) = (found for name, found in by_score.items() if name.endswith("all search images"))
    gflops = by_score["GFLOPs"]
    tau = [f"{found[kind]['tau']:.2f}" for found in (whole, gflops) for kind in ("equal cost", "all")]
    assert "(τ {} at equal cost, {} over all; GFLOPs {} and {})".format(*tau) in text
