"""What goes where: results on standard output, everything else on standard error; JSON, quiet, verbose, Ctrl-C."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command_line import call, tiny_options, tiny_study

from ltmsearch.cli.log import without_torchs_remark
from ltmsearch.config.recipe import load_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished study."""
    return tiny_study(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


def continued(finished: Path) -> tuple[str, ...]:
    """The same study again: nothing is left to train."""
    return ("run", *tiny_options(out=finished))


def test_a_run_tells_its_front_as_one_json_document(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(*continued(finished), "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    document = json.loads(out, parse_constant=pytest.fail)
    assert list(document) == ["folder", "settings", "trials", "front", "baselines", "findings"]
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
    assert document["baselines"][0]["expected_top1"] is not None, "what the front goes by"
    assert document["findings"] == json.loads((finished / "findings.json").read_text(encoding="utf-8"))["sentences"]
    assert "mobilevit_xxs with ltm merging" in err, "notes are told, but not between the JSON"


def test_results_go_to_standard_output_and_notes_to_standard_error(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(*continued(finished), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert "Front: " in out
    assert f"plots, tables and recipes: {finished}" in out
    assert "warm-up: " in err
    assert "warm-up: " not in out
    assert "Front: " not in err
    assert "\x1b" not in out + err, "no colours and no bars where there is no terminal"
    code, out, err = call(*continued(finished), "--quiet", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out, err) == (0, "", "")
    code, out, err = call(*continued(finished), "--quiet", "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    assert json.loads(out)["folder"] == str(finished)


def test_asked_for_colours_a_file_still_gets_no_bars(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, _, err = call(*continued(finished), monkeypatch=monkeypatch, capsys=capsys)
    assert "━" not in err
    assert "searching: 6 of 6" in err


def test_the_log_tells_settings_trials_files_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", *tiny_options(trials=3, out=tmp_path / "run"))
    code, out, err = call(*arguments, "--verbose", "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0, err
    rows = {row["trial"]: row for row in json.loads(out)["front"]}
    lines = [line for line in err.splitlines() if " ltmsearch." in line]
    assert all(line[:4].isdigit() and line.split()[2] in ("INFO", "DEBUG") for line in lines), "time and level"
    text = "\n".join(lines)
    for told in (
        "ltmsearch run --backbone=mobilevit_xxs",
        "Python 3.",
        "torch 2.",
        '"proxy_steps": 1',
        "supernet on cpu",
    ):
        assert told in text
    assert f"wrote {tmp_path / 'run/front.csv'}: " in text
    trials = [line for line in lines if ": cost " in line]
    assert len(trials) == 4, "the plain net and three more"
    assert "trial 0 (baseline plain): cost 0.3096, top-1 " in trials[0]
    assert all("; sampler " in line and ", checkpoint " in line and "keep ratios " in line for line in trials)
    assert rows
    assert logging.getLogger("ltmsearch").handlers == []
    _, _, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert " ltmsearch." not in err, "not unless it is asked for"


def test_rejected_proposals_are_logged_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.sizes import TINY

    from ltmsearch.config.settings import StudySettings
    from ltmsearch.study import run_study

    caplog.set_level(logging.INFO, logger="ltmsearch")
    settings = {**TINY, "budget_gflops": 0.222, "trials": 8, "sampler": "random", "out": str(tmp_path / "run")}
    result = run_study(StudySettings.make("test", **settings))
    rejected = [record.trial for record in result.trials if record.state == "over budget"]
    assert rejected, "a budget that random proposals miss"
    told = [record.getMessage() for record in caplog.records if " rejected, " in record.getMessage()]
    assert [line.split()[1] for line in told] == [str(trial) for trial in rejected]
    assert all("GFLOPs over budget: 0.0" in line and "; sampler " in line for line in told)


@pytest.mark.parametrize(
    ("command", "called", "message"),
    [
        ("run", "ltmsearch.study.run_study", "the same command continues, {folder} holds what is done"),
        ("export", "ltmsearch.export.export_run", "files that are whole stay, the same command writes all again"),
        ("profile", "ltmsearch.latency.profile_backbone", "nothing is kept of what was timed"),
        (
            "train",
            "ltmsearch.training.trainer.train_recipe",
            "the same command with --resume continues, {folder} holds",
        ),
        ("validate", "ltmsearch.training.validation.validate_recipe", "nothing is written by this command"),
    ],
)
def test_ctrl_c_ends_with_a_line_that_says_how_to_go_on(
    command: str,
    called: str,
    message: str,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(called, interrupted)
    recipe = str(next((finished / "recipes").iterdir()))
    arguments = {
        "run": continued(finished),
        "export": ("export", str(finished)),
        "profile": ("profile", "mobilevit_xxs"),
        "train": ("train", recipe, "--out", str(finished)),
        "validate": ("validate", recipe, "--checkpoint", "x"),
    }[command]
    code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (1, "")
    assert err.startswith(f"stopped; {message.format(folder=finished)}")
    assert err.count("\n") == 1


def test_ctrl_c_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ltmsearch.study.run_study", interrupted)
    arguments = ("run", *tiny_options(out=tmp_path / "run"))
    code, _, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (1, "stopped; nothing is written yet, the same command begins again\n")
    monkeypatch.setattr("ltmsearch.costs.describe.describe_space", interrupted)
    code, _, err = call("space", "mobilevit_xxs", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (1, "stopped\n")


def test_what_is_not_finite_is_null(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ltmsearch.cli.terminal import print_json

    print_json({"loss": float("nan"), "rows": [{"x": float("inf")}, (1.5, None, "ü")]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": None, "rows": [{"x": None}, [1.5, None, "ü"]],
    }  # fmt: skip


def test_a_reader_that_goes_away_ends_a_command_quietly() -> None:
    code = (
        "import os, sys\n"
        "os.close(0); read, write = os.pipe(); os.dup2(write, 1); os.close(write); os.close(read)\n"
        "sys.argv = ['ltmsearch', 'cost', '--help']\n"
        "from ltmsearch.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_torchs_remark_on_cuda_is_left_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    speaker, ours = logging.getLogger("torch.utils.cpp_extension"), logging.getLogger("ltmsearch")
    remark = ("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
    level = ours.level
    with without_torchs_remark():
        speaker.warning(*remark)
        assert caplog.records == []
        speaker.warning("something else")
        assert len(caplog.records) == 1
        ours.setLevel(logging.DEBUG)  # as --verbose does
        speaker.warning(*remark)
        ours.setLevel(level)
        assert len(caplog.records) == 2
    speaker.warning(*remark)
    assert len(caplog.records) == 3, "as it was for others"


def test_a_full_disk_is_told_with_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
        code, _, told = call("run", *tiny_options(out="r", trials=3), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert re.search(r"\nfailed: No space left on device: r/\S+; the same command continues, r holds what is", told)
    assert not [path for path in Path("r").rglob(".*") if path.is_file()], "nothing is left half written"
    code, _, told = call("run", *tiny_options(out="r", trials=3), "--quiet", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, told) == (0, "")
