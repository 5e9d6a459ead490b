"""Wrong input on the command line: one line with the rule, the value and a suggestion; exit code 2."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.command_line import Ltmsearch, image_folder, tiny_options

from ltmsearch.config.recipe import Recipe

BUDGET = ("--budget-gflops",)
XXS = ("run", "--backbone", "mobilevit_xxs")
RUN = (*XXS, *BUDGET, "0.27")
FAST = (*XXS, "--budget-ms", "5", "--device", "cpu")
PROFILE = ("profile", "mobilevit_xxs", "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--backbone", "mobilvit_s", *BUDGET, "1.2"), "'mobilvit_s': did you mean mobilevit_s?"),
        (XXS, "--budget-gflops or --budget-ms must be given"),
        (("run", "--budget-gflops", "1.2"), "--backbone must be given"),
        ((*XXS, *BUDGET, "0.1"), "is too low: merging reaches 0.2"),
        ((*RUN, "--trials", "-3"), "trials must be greater than or equal to 1, but got '-3'"),
        ((*RUN, "--trials=abc"), "trials must be a valid integer, but got 'abc'"),
        ((*RUN, "--sampler", "tpee"), "or 'random', but got 'tpee': did you mean tpe?"),
        ((*RUN, "--operator", "tom"), "unknown operator 'tom': did you mean tome?"),
        ((*RUN, "--data-dir", "nowhere"), "must be an existing image folder, but got 'nowhere'"),
        ((*RUN, "--dataset", "torch/cifar11"), "unknown dataset 'torch/cifar11': did you mean torch/cifar10?"),
        ((*RUN, "--device", "gpu"), "`--device` must be auto, cpu or cuda, but got 'gpu' (torch has no such device)"),
        ((*RUN, "--space", "mobilvit"), "unknown file 'mobilvit': did you mean mobilevit?"),
        ((*RUN, "--config", "mobilvit_s"), "did you mean mobilevit_s?"),
        ((*RUN, "--checkpoint", "none.pth"), "the checkpoint must be a file, but none.pth does not exist"),
        ((*RUN, "--storage", "mysql://me:secret@host/all"), "a URL that starts with mysql:"),
        ((*RUN, "--storage", "sqlite:///no/such/folder/all.db"), "all.db cannot be used: unable to open database file"),
        (("cost", "mobilevit_xxs", "--keep", "0.5,x"), "--keep must be keep ratios in (0, 1], or negative integers"),
        (("cost", "mobilevit_xxs", "--keep", "0.5,0.5"), "but got 2 for 9 layers"),
        (("cost", "mobilevit_xxs", "--keep", "1.5"), r"must be in (0, 1]"),
        (("cost", "mobilevit_xxs", "--keep=-8.5"), "negative integers (tokens to remove), but layer"),
        (("cost", "mobilevit_xxs", "--operator", "pool", "--form", "hard"), "by 'pool' must be soft, but got 'hard'"),
        (("space", "resnet50"), "but got resnet50: it is timm's ResNet, and nobody has written an adapter"),
        (("space", "efficientvit_m0"), "but got efficientvit_m0: it is timm's EfficientVitMsra"),
        ((*FAST, "--latency-profile", "none.json"), "the latency profile none.json cannot be read: No such file"),
        ((*FAST, "--latency-dtype", "fp16"), "fp16 needs a GPU"),
        ((*PROFILE, "--runtime", "torhc"), "but got 'torhc': did you mean torch?"),
        ((*PROFILE, "--threads", "9999"), "the threads of a latency target must be from"),
        ((*PROFILE, "--img-size", "16"), "img_size"),
        ((*PROFILE, "--out", "."), "--out must be a file, but . is a folder"),
        (("profile", "none.yaml"), "none.yaml"),
        (("profile", "none.yaml", "--again"), "--operator, --space, --again and --out need a backbone"),
        (("front", "nowhere"), "expected the run directory of a study, but nowhere is not a folder"),
        (("export", "nowhere"), "or the folder of a training, but is not a folder"),
        ((*RUN, "--quiet", "--verbose"), "--quiet and --verbose cannot both be given"),
        (("run", "--no-such-option"), "no such option: --no-such-option (see ltmsearch run --help)"),
        (("run", "--trails", "3"), "no such option: --trails (Possible options: --pretrained, --train-split"),
        (("runn",), "no such command 'runn'. Did you mean 'run'? (see ltmsearch --help)"),
        (("--foo",), "no such option: --foo (see ltmsearch --help)"),
        (("cost",), "missing argument 'BACKBONE' (see ltmsearch cost --help)"),
        (("validate", "r.yaml"), "missing option '--checkpoint'"),
        (("run", "--budget-ms"), "'--budget-ms' requires an argument"),
        (("run", "--quiet=1"), "'--quiet' does not take a value"),
        (("space", "mobilevit_xxs", "--img-size=9"), "--img-size must be greater than or equal to 32, but got '9'"),
        (("export", "run", "more"), "unexpected extra argument"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ltmsearch(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_without_arguments_the_help_is_printed(ltmsearch: Ltmsearch) -> None:
    code, out, err = ltmsearch()
    assert code == 2
    assert "ltmsearch run --backbone" in out
    assert "error" not in err


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        ("profile", "r.yaml", "--device", "cpu"),
        ("train", "r.yaml", "--dataset", "digits", "--device", "cpu", "--out", "trained"),
        ("visualize", "r.yaml", "--image", "a.png"),
        ("space", "vit_tiny_patch16_224", "--space", "space.yaml"),
        ("run", "--backbone", "vit_tiny_patch16_224", *BUDGET, "1", "--space", "space.yaml", "--device", "cpu"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_merges_by_place_behind_matched_are_refused(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = "schema_version: 1\nfamily: vit\n"
    Path("space.yaml").write_text(f"{head}keep_ratios: [0.7]\nforms: [soft, matched]\n")
    keys = {"operator": "ltm", "schedule": {"blocks.0": 0.7, "blocks.2": -8}, "forms": {"blocks.2": "soft"}}
    Recipe(model="ltm_vit_tiny_patch16_224", img_size=64, num_classes=10, **keys).save(Path("r.yaml"))
    Image.new("RGB", (80, 80)).save("a.png")
    code, out, err = ltmsearch(*arguments)
    assert (code, out) == (2, "")
    of_space = "forms of a search space must not need a grid behind a form that leaves it, but blocks.1 offers soft"
    of_recipe = "merges by place need tokens on a grid, but blocks.2 has the form 'soft' behind blocks.0"
    assert (of_space if "space.yaml" in arguments else of_recipe) in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert err.count("error") == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "runs/x"), "No space left on device: 'runs/x'"),
        (MemoryError(), "the device is out of memory: use a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "memory"),
    ],
)
def test_full_disk_and_full_memory_are_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ltmsearch.costs.describe.describe_space", fail)
    code, _, err = ltmsearch("space", "mobilevit_xxs")
    assert code == 1
    assert err.startswith("failed: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("out", "reason"), [("file", "it is a file"), ("file/run", "Not a directory")])
def test_unwritable_run_directory(out: str, reason: str, tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = ltmsearch("run", *tiny_options(), "--out", tmp_path / out)
    assert code == 2
    assert f"cannot be written: {reason}" in err
    assert err.count("\n") == 1, "before anything is read or built"


LONG = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*RUN, "--study", LONG), "study must have at most 150 characters, but got 'nnn"),
        ((*RUN, "--study", "a\nb"), "study must match pattern"),
        ((*RUN, "--out", LONG), f"the run directory {LONG} cannot be written: File name too long"),
        ((*RUN, "--out", "a\nb/file/below"), "the run directory a\\nb/file/below cannot be written: Not a directory"),
        ((*RUN, "--data-dir", LONG), "must be an existing image folder, but got 'nnn"),
        ((*RUN, "--data-dir", "a\nb\x1b[31m"), r"but got 'a\nb\x1b[31m'"),
        ((*RUN, "--checkpoint", LONG), "paths must be short enough for their file system, but got 'nnn"),
        ((*RUN, "--checkpoint", "a\nb.pth"), r"the checkpoint must be a file, but a\nb.pth does not exist"),
        ((*RUN, "--resume-from", LONG), "paths must be short enough"),
        ((*RUN, "--space", LONG), "paths must be short enough"),
        ((*RUN, "--space", "a\nb"), r"unknown file 'a\nb'"),
        ((*RUN, "--config", LONG), "paths must be short enough"),
        (("front", LONG), "paths must be short enough"),
        (("front", "a\nb"), r"expected the run directory of a study, but a\nb has no settings.yaml"),
        (("export", LONG), "paths must be short enough"),
        (("train", LONG), "cannot be read: File name too long"),
        (("train", "c\nd"), r"c\nd does not exist"),
        (("visualize", "a\nb/r.yaml", "--out", LONG), "cannot be written: File name too long"),
        (("visualize", "a\nb/r.yaml", "--image", LONG), "File name too long"),
        (("visualize", "a\nb/r.yaml", "--image", "no\nimage"), r"no\nimage"),
        ((*PROFILE, "--out", LONG), "paths must be short enough"),
    ],
    ids=repr,
)
def test_long_names_and_line_breaks_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a\nb").mkdir()
    Path("a\nb/file").write_text("in the way")
    schedule = {"stages.2.1.transformer.0": 0.5}
    net = Recipe(model="ltm_mobilevit_xxs", operator="ltm", schedule=schedule, img_size=64, num_classes=10)
    net.save(Path("a\nb/r.yaml"))
    code, out, err = ltmsearch(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err


@pytest.mark.long
@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda root: (root / "train/dog/0.jpg").write_text("no image"), 0, "unreadable skipped: 'train/dog/0.jpg'"),
        (lambda root: (root / "train/bird").mkdir(), 2, "class folders must contain images"),
        (lambda root: (root / "validation").rename(root / "elsewhere"), 2, "must contain validation/ or val/"),
    ],
    ids=["text named as an image", "empty class", "no validation"],
)  # fmt: skip
def test_image_folders(tmp_path: Path, damage: Any, code: int, message: str, ltmsearch: Ltmsearch) -> None:
    root = image_folder(tmp_path / "images")
    damage(root)
    got, out, err = ltmsearch("run", *tiny_options(trials=1), "--data-dir", root, "--out", tmp_path / "run")
    assert got == code, err
    assert message in out + err
    assert (tmp_path / "run/report.html").exists() == (code == 0)
    assert (tmp_path / "run").exists() == (code == 0)


def test_one_class_only(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    root = image_folder(tmp_path / "images", classes=("cat",))
    code, _, err = ltmsearch(*RUN, "--data-dir", root)
    assert code == 2
    assert "at least two classes, but got only 'cat'" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--aa", "nonsense"), "`aa` must be an augmentation policy of timm, such as rand-m9-mstd0.5"),
        (("--sched", "cosin"), "but got 'cosin': did you mean cosine?"),
        (("--lr", "nan"), "lr must be a finite number, but got 'nan'"),
        (("--scale", "0.5", "0.1"), "scale must be two increasing numbers above 0, but got 0.5 and 0.1"),
        (("--init", "nowhere"), "the checkpoint must be a file, but nowhere does not exist"),
        (("--out", "17.yaml"), "the folder 17.yaml cannot be written: it is a file"),
        (("--data-dir", "17.yaml"), "must be an existing image folder, but got '17.yaml'"),
    ],
)
def test_wrong_training_keys_are_refused_first(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = {"stages.2.1.transformer.0": 0.5}
    Recipe(model="ltm_mobilevit_xxs", operator="ltm", schedule=schedule, img_size=64, num_classes=10).save(
        tmp_path / "17.yaml"
    )
    code, out, err = ltmsearch("train", "17.yaml", "--device", "cpu", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["17.yaml"]
