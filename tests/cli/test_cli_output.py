"""Results on standard output, everything else on standard error; JSON, quiet, verbose, Ctrl-C."""

import errno
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Ltmsearch, tiny, tiny_options
from support.processes import completed

from ltmsearch.config.recipe import load_recipe
from ltmsearch.study import run_study


def continued(finished: Path) -> tuple[str, ...]:
    """Arguments that run a finished study again."""
    return ("run", *tiny_options(out=finished))


def test_run_prints_one_json_document(finished: Path, ltmsearch: Ltmsearch) -> None:
    code, out, err = ltmsearch(*continued(finished), "--json")
    assert code == 0, err
    document = json.loads(out, parse_constant=pytest.fail)
    assert list(document) == ["folder", "settings", "probe", "trials", "front", "baselines", "findings", "verdict"]
    assert document["folder"] == str(finished)
    assert document["settings"]["budget_gflops"] == 0.27
    assert document["trials"]["scored"] >= 6
    front = (finished / "front.csv").read_text().splitlines()
    assert list(document["front"][0]) == front[0].split(",")
    assert [str(row["trial"]) for row in document["front"]] == [line.split(",")[0] for line in front[1:]]
    recipe = load_recipe(finished / f"recipes/{document['front'][0]['trial']}.yaml")
    assert document["front"][0]["keep_ratios"] == recipe.schedule.keep_ratios
    assert document["baselines"][0]["label"] == "plain"
    assert not document["baselines"][0]["feasible"]
    assert document["baselines"][0]["rescored_loss"] is not None, "the front is ranked by it"
    assert document["baselines"][0]["difference"] == 0.0
    assert document["baselines"][0]["agreement"] == 100.0
    assert document["findings"] == json.loads((finished / "findings.json").read_text(encoding="utf-8"))["sentences"]
    assert "mobilevit_xxs with ltm merging" in err, "notes go to standard error"


@pytest.mark.long
def test_results_and_notes_go_to_different_streams(finished: Path, ltmsearch: Ltmsearch) -> None:
    code, out, err = ltmsearch(*continued(finished))
    assert code == 0
    assert "Front: " in out
    assert f"Results: {finished}/report.html; plots, tables and recipes in {finished}" in out
    assert "warm-up: " in err
    assert "warm-up: " not in out
    assert "Front: " not in err
    assert "\x1b" not in out + err, "no colours and no bars where there is no terminal"
    assert " ltmsearch." not in err, "log lines only with --verbose"
    code, out, err = ltmsearch(*continued(finished), "--quiet", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["folder"] == str(finished)


def test_a_file_gets_no_bars_even_with_forced_colours(
    finished: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, _, err = ltmsearch(*continued(finished))
    assert "━" not in err
    assert "searching: 6 of 6" in err


@pytest.mark.long
def test_verbose_logs_settings_trials_and_versions(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    arguments = ("run", *tiny_options(trials=3, out=tmp_path / "run"))
    code, out, err = ltmsearch(*arguments, "--verbose", "--json")
    assert code == 0, err
    rows = {row["trial"]: row for row in json.loads(out)["front"]}
    lines = [line for line in err.splitlines() if " ltmsearch." in line]
    assert all(line[:4].isdigit() and line.split()[2] in ("INFO", "DEBUG") for line in lines), "time and level"
    text = "\n".join(lines)
    for text_part in (
        "ltmsearch run --backbone=mobilevit_xxs",
        "Python 3.",
        "torch 2.",
        '"proxy_steps": 1',
        "supernet on cpu",
    ):
        assert text_part in text
    assert f"wrote {tmp_path / 'run/front.csv'}: " in text
    trials = [line for line in lines if ": cost " in line]
    assert len(trials) == 4, "the plain net and three more"
    assert "trial 0 (baseline plain): cost 0.3096, top-1 " in trials[0]
    assert all("; sampler " in line and ", checkpoint " in line and "keep ratios " in line for line in trials)
    assert rows
    assert logging.getLogger("ltmsearch").handlers == []


@pytest.mark.slow
def test_rejected_proposals_are_logged_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ltmsearch")
    result = run_study(tiny(tmp_path / "run", budget_gflops=0.222, trials=8, sampler="random"))
    rejected = [record.trial for record in result.trials if record.state == "over budget"]
    assert rejected, "a budget that random proposals miss"
    lines = [record.getMessage() for record in caplog.records if " rejected, " in record.getMessage()]
    assert [line.split()[1] for line in lines] == [str(trial) for trial in rejected]
    assert all("GFLOPs over budget: 0.0" in line and "; sampler " in line for line in lines)


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "called", "message"),
    [
        ("run", "ltmsearch.study.run_study", "repeat the command to continue from {folder}"),
        ("export", "ltmsearch.export.export_run", "complete files remain; repeat the command"),
        ("profile", "ltmsearch.latency.profile_backbone", "no measurement has been saved; repeat the command"),
        ("train", "ltmsearch.training.trainer.train_recipe", "add --resume to the command to continue from {folder}"),
        ("validate", "ltmsearch.training.validation.validate_recipe", "nothing has been written; repeat the command"),
    ],
)
def test_ctrl_c_ends_with_advice_how_to_continue(
    command: str, called: str, message: str, finished: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.setattr(called, interrupted)
    recipe = str(next((finished / "recipes").iterdir()))
    arguments = {
        "run": continued(finished),
        "export": ("export", str(finished)),
        "profile": ("profile", "mobilevit_xxs"),
        "train": ("train", recipe, "--out", str(finished)),
        "validate": ("validate", recipe, "--checkpoint", "x"),
    }[command]
    code, out, err = ltmsearch(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"stopped; {message.format(folder=finished)}")
    assert err.count("\n") == 1


def test_ctrl_c_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.setattr("ltmsearch.study.run_study", interrupted)
    arguments = ("run", *tiny_options(out=tmp_path / "run"))
    code, _, err = ltmsearch(*arguments)
    assert (code, err) == (1, "stopped; nothing has been written yet; repeat the command to start again\n")
    monkeypatch.setattr("ltmsearch.costs.describe.describe_space", interrupted)
    code, _, err = ltmsearch("space", "mobilevit_xxs")
    assert (code, err) == (1, "stopped\n")


def test_json_has_null_for_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    from ltmsearch.cli.terminal import print_json

    print_json({"loss": float("nan"), "rows": [{"x": float("inf")}, (1.5, None, "ü")]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": None, "rows": [{"x": None}, [1.5, None, "ü"]],
    }  # fmt: skip


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    code = (
        "import os, sys\n"
        "os.close(0); read, write = os.pipe(); os.dup2(write, 1); os.close(write); os.close(read)\n"
        "sys.argv = ['ltmsearch', 'cost', '--help']\n"
        "from ltmsearch.cli.main import main\nmain()"
    )
    done = completed([sys.executable, "-c", code], check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


@pytest.mark.slow
def test_a_full_disk_ends_with_advice_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.chdir(tmp_path)
    original, calls = os.fsync, [0]

    def full_in_the_end(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_in_the_end)
        code, _, err = ltmsearch("run", *tiny_options(out="r", trials=3))
    assert code == 1
    assert re.search(r"\nfailed: No space left on device: r/\S+; repeat the command to continue from r\n", err)
    assert not [path for path in Path("r").rglob(".*") if path.is_file()], "no half-written file remains"
    code, _, err = ltmsearch("run", *tiny_options(out="r", trials=3), "--quiet")
    assert (code, err) == (0, "")


@pytest.mark.long
def test_a_study_without_any_score_ends_with_one_line_and_code_1(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    arguments = tiny_options(out=tmp_path / "run", trials=1, trial_timeout=1e-9)
    code, out, err = ltmsearch("run", *arguments, "--json")
    assert code == 1
    reason = "no trial within the budget has a score (1 failed)"
    advice = "continue with more --trials or without --timeout, or raise the budget"
    assert err.splitlines()[-1] == f"failed: {reason}: {advice}"
    assert json.loads(out)["front"] == []
    assert (tmp_path / "run/report.html").is_file()
    code, _, err = ltmsearch("run", *tiny_options(out=tmp_path / "none", trials=1, timeout=1e-9), "--quiet")
    assert code == 1
    assert err.startswith("failed: no trial within the budget has a score (no trial has run): continue")
    assert len(err.splitlines()) == 1
