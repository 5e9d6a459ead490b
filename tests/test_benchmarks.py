"""Every benchmark has a header, options and a bounded size."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from support.pages import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
by_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@by_script
def test_a_benchmark_prints_its_help(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


@by_script
def test_a_benchmark_names_its_page_and_result(script: Path) -> None:
    header = script.read_text(encoding="utf-8").split('"""')[1]
    for field in ("Claim:", "Command:", "Duration:", "Result:", "Page:"):
        assert f"\n{field}" in header, field
    assert f"python benchmarks/{script.name}" in header
    (page,) = re.findall(r"Page: +(docs/\S+\.md)", header)
    assert f"benchmarks/{script.name}" in (ROOT / page).read_text(encoding="utf-8")


def test_a_free_merge_runs_in_every_kind_of_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in for an operator, whose interface it must follow."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from harness.merged_nets import free_net

    from ltmsearch.models import create_backbone, get_adapter

    for backbone in ("mobilevit_xxs", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"):
        layers = get_adapter(backbone).layers(create_backbone(backbone))
        net = free_net(backbone, layers, 0.5, 64).eval()
        with torch.inference_mode():
            assert net(torch.randn(1, 3, 64, 64)).isfinite().all(), backbone


@pytest.mark.parametrize("folder", ["benchmarks", "benchmarks/harness"])
def test_no_file_of_the_benchmarks_exceeds_250_lines(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path.name
