"""Wrong input on the command line: one line that says what, and what would do; exit code 2."""

from pathlib import Path
from typing import Any

import pytest
from support.command_line import call, image_folder, tiny_options

from ltmsearch.config.recipe import Recipe


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)


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
        ((*RUN, "--sampler", "tpee"), "or 'random', but got 'tpee': did you mean tpe?"),
        ((*XXS, *BUDGET, "inf"), "budget_gflops: Input should be a finite number, but got inf"),
        ((*RUN, "--operator", "tom"), "unknown operator 'tom': did you mean tome?"),
        ((*RUN, "--data-dir", "nowhere"), "must be an existing image folder, but got 'nowhere'"),
        ((*RUN, "--dataset", "torch/cifar11"), "unknown dataset 'torch/cifar11': did you mean torch/cifar10?"),
        ((*RUN, "--device", "gpu"), "--device 'gpu' cannot be used (torch knows no such device)"),
        ((*RUN, "--space", "mobilvit"), "unknown file 'mobilvit': did you mean mobilevit?"),
        ((*RUN, "--config", "mobilvit_s"), "did you mean mobilevit_s?"),
        ((*RUN, "--checkpoint", "none.pth"), "the checkpoint must be a file, but none.pth does not exist"),
        ((*RUN, "--pretrained", "--checkpoint", "none.pth"), "pretrained and checkpoint cannot both be given"),
        ((*RUN, "--study", "../up"), "study: String should match pattern"),
        ((*RUN, "--storage", "mysql://me:secret@host/all"), "begins with mysql: which is not supported"),
        ((*RUN, "--storage", "sqlite:///no/such/folder/all.db"), "all.db cannot be used: unable to open database file"),
        (("cost", "mobilevit_xxs", "--keep", "0.5,x"), "--keep must be numbers"),
        (("cost", "mobilevit_xxs", "--keep", "0.5,0.5"), "but got 2 for 9 layers"),
        (("cost", "mobilevit_xxs", "--keep", "1.5"), r"must be in (0, 1]"),
        (("cost", "mobilevit_xxs", "--operator", "pool", "--form", "hard"), "by 'pool' must be soft, but got 'hard'"),
        (("cost", "mobilevit_xxs", "--form", "firm"), "must be soft, hard, matched, but got 'firm'"),
        (("cost", "mobilevit_xxs", "--form", "sof"), "but got 'sof': did you mean soft?"),
        (("space", "resnet50"), "unknown backbone 'resnet50'"),
        (("space", "efficientvit_m0"), "but got efficientvit_m0: it is Microsoft's EfficientViT"),
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
        (("profile", "mobilevit_xxs", "--runtime", "torhc"), "but got 'torhc': did you mean torch?"),
        (("profile", "mobilevit_xxs", "--device", "cpu", "--out", "."), "--out must be a file, but . is a folder"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--no-such-option"), "no such option: --no-such-option (see ltmsearch run --help)"),
        (("run", "--trails", "3"), "unknown option --trails: did you mean --trials?"),
        (("runn",), "unknown command 'runn': did you mean run?"),
        (("--foo",), "no such option: --foo (see ltmsearch --help)"),
        (("cost",), "missing argument 'BACKBONE' (see ltmsearch cost --help)"),
        (("validate", "r.yaml"), "missing option '--checkpoint'"),
        (("run", "--trials", "abc"), "but got 'abc' (see ltmsearch run --help)"),
        (("run", "--trials=abc"), "--trials: "),
        (("run", "--budget-ms"), "'--budget-ms' requires an argument"),
        (("run", "--quiet=1"), "'--quiet' does not take a value"),
        (("space", "mobilevit_xxs", "--img-size", "9"), "--img-size: "),
        (("space", "mobilevit_xxs", "--img-size", "99999"), "but got '99999'"),
        (("export", "run", "more"), "unexpected extra argument"),
        ((*RUN, "--quiet", "--verbose"), "--quiet and --verbose cannot both be given"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_too(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_without_arguments_the_help_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "ltmsearch run --backbone" in out
    assert "error" not in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "runs/x"), "No space left on device: 'runs/x'"),
        (MemoryError(), "the memory of the device is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "memory"),
    ],
)
def test_a_full_disk_and_a_full_memory_are_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ltmsearch.costs.describe.describe_space", fail)
    code, _, err = call("space", "mobilevit_xxs", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1
    assert err.startswith("failed: ")
    assert message in err
    assert err.count("\n") == 1


def test_unwritable_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out, reason in (("file", "it is a file"), ("file/run", "Not a directory")):
        where = ("--out", str(tmp_path / out))
        code, _, err = call("run", *tiny_options(), *where, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 2
        assert f"cannot be written: {reason}" in err
        assert err.count("\n") == 1, "before anything is read or built"


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda root: (root / "train/dog/0.jpg").write_text("no image"), 0, "unreadable skipped: 'train/dog/0.jpg'"),
        (lambda root: (root / "train/dog/notes.txt").write_text("hello"), 0, "12 training"),
        (lambda root: (root / "train/bird").mkdir(), 2, "class folders must contain images"),
        (lambda root: [f.unlink() for f in (root / "train/dog").iterdir()], 2, "class folders must contain images"),
        (lambda root: (root / "validation").rename(root / "elsewhere"), 2, "must contain validation/ or val/"),
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
    arguments = [*tiny_options(trials=1), "--data-dir", str(root), "--out", str(tmp_path / "run")]
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--aa", "nonsense"), "aa must be a policy of timm's, such as rand-m9-mstd0.5"),
        (("--sched", "cosin"), "but got 'cosin': did you mean cosine?"),
        (("--lr", "nan"), "lr: Input should be a finite number, but got nan"),
        (("--init", "nowhere"), "the checkpoint must be a file, but nowhere does not exist"),
        (("--out", "17.yaml"), "the folder 17.yaml cannot be written: it is a file"),
        (("--data-dir", "17.yaml"), "must be an existing image folder, but got '17.yaml'"),
    ],
)
def test_wrong_keys_of_a_training_are_refused_before_it_begins(
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = {"stages.2.1.transformer.0": 0.5}
    recipe = Recipe(
        model="ltm_mobilevit_xxs", operator="ltm", schedule=schedule, img_size=64, num_classes=10, provenance={}
    )
    recipe.save(tmp_path / "17.yaml")
    code, out, err = call("train", "17.yaml", "--device", "cpu", *options, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["17.yaml"]
