"""The examples of the documentation run: Python blocks, the tutorial, the notebook."""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import timm
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import save_file
from support.pages import PAGES, ROOT, blocks, shell_lines
from support.profiles import costs_of
from support.sizes import TINY

from ltmsearch.cli.main import main
from ltmsearch.config.settings import StudySettings
from ltmsearch.merging import OPERATORS
from ltmsearch.models import FAMILIES
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.run import Run
from ltmsearch.study import run_study

TUTORIAL = ROOT / "docs/tutorial.md"
VIT = "vit_small_patch14_dinov2"
"""The tutorial's network."""
NOTEBOOK = ROOT / "examples/search_and_inspect.ipynb"
WITH_PYTHON = [p for p in PAGES if p != TUTORIAL and any(block.language == "python" for block in blocks(p))]
RUN = "runs/mobilevit_s-ltm-1.2gflops-224-digits"
"""The run directory that the pages use."""
DEFAULTS = {n: v for n, v in TINY.items() if n.endswith(("steps", "images", "img_size", "batch_size", "schedules"))}
"""Defaults that make the examples' studies small."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of the examples, with the study that they use."""
    path = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        result = run_study(StudySettings.make(**{**TINY, "backbone": "mobilevit_s", "budget_gflops": 1.2, "out": RUN}))
        recipe = next(Path(RUN, "recipes").iterdir())
        recipe.rename(Path(RUN, "recipes/7.yaml"))  # the trial number on the pages
        assert result.front
    return path


@pytest.fixture
def small_studies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Studies in that directory take seconds; operators and families that examples register are removed again."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
    monkeypatch.setattr("ltmsearch.config.defaults.CPU", DEFAULTS)
    monkeypatch.setattr("ltmsearch.programs.export_onnx", lambda _net, path, **_: path.touch())
    operators, families = dict(OPERATORS), list(FAMILIES)
    yield
    OPERATORS.clear()
    OPERATORS.update(operators)
    FAMILIES[:] = families


def write_phone_times(times: Path) -> None:
    """Times of a phone whose latency is proportional to GFLOPs, for the latency page."""
    costs = costs_of("mobilevit_xxs", 224)
    subnets = json.loads(Path("phone/subnets.json").read_text())
    assert len(list(Path("phone").glob("*.onnx"))) == len(subnets)
    schedules = [MergeSchedule(keep_ratios=s["keep_ratios"], forms=s["forms"]) for s in subnets]
    times.write_text(json.dumps({str(i): [100 * costs.gflops(s), 0.01] for i, s in enumerate(schedules)}))


BEFORE: dict[tuple[str, int], Callable[[], Any]] = {
    ("latency.md", 1): lambda: write_phone_times(Path("phone/times.json"))
}
"""Page name and number of a Python block → a manual step of the reader before that block."""


@pytest.mark.usefixtures("small_studies")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_runs_and_prints_its_output(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    all_blocks = blocks(page)
    number = 0
    for block, next_block in zip(all_blocks, [*all_blocks[1:], None], strict=True):
        if block.language != "python":
            continue
        BEFORE.get((page.name, number), lambda: None)()
        number += 1
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.code, f"{page.name}, block {number}", "exec"), names)
        if next_block is not None and next_block.language == "text" and _adjacent(page, block.code, next_block.code):
            assert out.getvalue() == next_block.code


def _adjacent(page: Path, code: str, text: str) -> bool:
    return f"{code}```\n\n```text\n{text}" in page.read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.usefixtures("small_studies")
def test_study_uses_the_profile_of_the_latency_page() -> None:
    if not Path("phone.json").exists():
        test_python_of_a_page_runs_and_prints_its_output(ROOT / "docs/howto/latency.md")
    settings = {**TINY, "budget_gflops": None, "budget_ms": 27.0, "latency_profile": "phone.json", "out": "runs/phone"}
    front = run_study(StudySettings.make("test", **settings)).front
    assert front
    for record in front:
        assert record.latency_ms == pytest.approx(100 * record.gflops, rel=0.02)
        assert record.latency_ms <= 27
        assert record.latency_measured_ms is None


@pytest.mark.long
def test_segmentation_with_merged_features_at_the_costs_of_its_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--steps", "2", "--seeds", "2", "--batch-size", "2", "--held-out", "2"]
    monkeypatch.setattr(sys, "argv", ["dense_features.py", *small])
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)  # of the whole process
    runpy.run_path(str(ROOT / "examples/dense_features.py"), run_name="__main__")
    header, *rows = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs/howto/dense-features.md").read_text(encoding="utf-8")
    assert f"\n{header}\n" in page
    assert len(rows) == 8
    for row in rows:
        name, gflops = row[:22], row[22:].split()[0]
        assert f"\n{name} {gflops}  " in page
        assert all(0 <= float(share) <= 100 for share in re.findall(r"([\d.]+) ± [\d.]+", row))
        assert row.count("±") == 3


def ltmsearch(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ltmsearch", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert not exit_info.value.code, arguments


def write_photographs(folder: Path) -> None:
    """A few images of three classes in place of the tutorial's photographs."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("validation", 4), ("test", 4)):
        for place, name in enumerate(("dress", "shirt", "shoes")):
            (folder / split / name).mkdir(parents=True)
            for image in range(number):
                pixels = rng.integers(0, 120, (96, 128, 3), dtype=np.uint8)
                pixels[30:60, 30 * place : 30 * place + 40] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{3409 + image:05}.jpg")


@pytest.mark.long
@pytest.mark.timeout(1800)  # slow on a busy machine
def test_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With few images, random weights and a short search."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
    monkeypatch.setattr("ltmsearch.config.defaults.CPU", DEFAULTS)
    write_photographs(Path("photos"))
    save_file(timm.create_model(VIT, num_classes=0, img_size=112).state_dict(), "vit.safetensors")
    (chosen,) = re.findall(r"^ltmsearch train \S+/(\d+)\.yaml", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE)
    (deploy,) = (block.code for block in blocks(TUTORIAL) if block.language == "python")
    done, trial = [], chosen
    for line in shell_lines(TUTORIAL):
        name, *arguments = shlex.split(re.sub(rf"(recipes/|photos-){chosen}\b", rf"\g<1>{trial}", line))[1:]
        ltmsearch([name, *arguments, *(["--trials", "8"] if name == "run" else [])], monkeypatch)
        done.append(name)
        if name == "run":
            # With random weights any network may be on the front, and perhaps none that merges.
            scored = [record for record in Run.open("runs/photos").trials if record.score is not None]
            trial = str(next(record.trial for record in scored if record.schedule.merging_layers))
            ltmsearch(["export", "runs/photos", "--trial", trial], monkeypatch)
            shutil.copy(f"runs/photos/export/{trial}/recipe.yaml", f"runs/photos/recipes/{trial}.yaml")
    assert done == ["space", "run", "front", "train", "validate", "export", "visualize", "profile"]
    capsys.readouterr()
    exec(deploy.replace(f"photos-{chosen}", f"photos-{trial}"), {})
    assert re.fullmatch(r"\d+ of 12 right\n", capsys.readouterr().out)


# -- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)  # slow on a busy machine
def test_notebook_runs_and_has_no_stored_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
        cell.source = cell.source.replace("base_steps=200", "base_steps=2").replace(
            "sandwich_steps=20", "sandwich_steps=1"
        )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=where).execute()
    last = notebook.cells[-1].outputs[-1]
    assert last.text == "torch.Size([1, 10])\n"
    assert (tmp_path / "runs/notebook/front.csv").exists()
