"""The linear probe of a study: once, before the warm-up, and only for a classifier that the weights lack."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.command_line import Ltmsearch, Notes, tiny, tiny_options
from support.faults import fingerprint
from support.nets import randomise

from ltmsearch import run_study
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError
from ltmsearch.models.supernet import Supernet
from ltmsearch.reporting.html.page import page_text
from ltmsearch.reporting.json_summary import study_document
from ltmsearch.search.description import describe
from ltmsearch.search.run import PROBE_RECORD, Run
from ltmsearch.search.setup import prepare
from ltmsearch.search.timing import PROBE, Times
from ltmsearch.search.trial import Evaluator
from ltmsearch.search.warmup import PROGRESS, WarmUpRun


def weights_of(folder: Path, classes: int) -> Path:
    net = randomise(timm.create_model("mobilevit_xxs", num_classes=classes))
    save_file(net.state_dict(), path := folder / f"{classes}.safetensors")
    return path


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network without a classifier."""
    return weights_of(tmp_path_factory.mktemp("weights"), 0)


def settings(out: Path, images: Path, weights: Path, **changes: Any) -> StudySettings:
    return tiny(out, **{"data_dir": str(images), "checkpoint": str(weights), "trials": 1, "base_steps": 3} | changes)


def no_probe(*_: object, **__: object) -> None:
    raise AssertionError("the classifier is fitted again")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path, headless: Path) -> tuple[Path, list[str]]:
    """The run directory of a study with a probe, not to be changed, and its notes."""
    notes, folder = Notes(), tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        run_study(settings(folder, images, headless), notes)
    return folder, notes.lines


def test_a_new_classifier_is_fitted_before_the_warm_up_and_told(finished: tuple[Path, list[str]]) -> None:
    folder, notes = finished
    run = Run.open(folder)
    assert run.probe is not None
    assert (run.probe.images, run.probe.classes, run.probe.img_size, run.probe.val_images) == (10, 2, 64, 6)
    assert str(run.probe) in notes
    assert any(line.startswith("classifier: new, and fitted to the features of 10 training images") for line in notes)
    (stint,) = Times.load(folder).stints
    assert 0 < stint.seconds[PROBE] < sum(stint.seconds.values())
    assert stint.expected[PROBE] > 0
    assert str(run.probe).removeprefix("classifier ") in page_text(run)
    assert study_document(run)["probe"]["train_top1"] == run.probe.train_top1


def test_only_the_classifier_changes(tmp_path: Path, images: Path, headless: Path) -> None:
    context = prepare(settings(tmp_path, images, headless), Callbacks())
    supernet = context.evaluator.supernet
    before, numbers = {n: v.clone() for n, v in supernet.state_dict().items()}, torch.get_rng_state()
    WarmUpRun(context, tmp_path).fit_classifiers(Callbacks(), lambda: None)
    changed = {name for name, value in supernet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.head.fc.weight", "model.head.fc.bias"}
    assert torch.equal(torch.get_rng_state(), numbers)


class _InterruptPhase(Callbacks):
    """Presses Ctrl-C at the first progress of a phase."""

    def __init__(self, name: str) -> None:
        self.name, self.current = name, ""

    def phase(self, name: str, total: int) -> None:
        self.current = name

    def advance(self, done: int, status: str = "") -> None:
        if self.current == self.name:
            raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.parametrize("phase", [pytest.param("fitting the classifier", marks=pytest.mark.slow), "warming up"])
def test_an_interrupted_study_ends_alike_and_fits_only_once(
    tmp_path: Path,
    images: Path,
    headless: Path,
    finished: tuple[Path, list[str]],
    phase: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, after = settings(tmp_path, images, headless), phase == "warming up"
    with pytest.raises(KeyboardInterrupt):
        run_study(begun, _InterruptPhase(phase))
    assert (tmp_path / PROGRESS).exists() == (tmp_path / PROBE_RECORD).exists() == after
    if after:
        monkeypatch.setattr(Evaluator, "fit_classifiers", no_probe)
    run_study(begun)
    assert fingerprint(tmp_path) == fingerprint(finished[0])


def test_more_trials_do_not_fit_again(
    tmp_path: Path, images: Path, headless: Path, finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    monkeypatch.setattr(Evaluator, "fit_classifiers", no_probe)
    run_study(settings(tmp_path / "run", images, headless, trials=2))
    assert Run.open(tmp_path / "run").probe == Run.open(finished[0]).probe
    record = json.loads((tmp_path / "run" / PROBE_RECORD).read_text())
    (tmp_path / "run" / PROBE_RECORD).write_text(json.dumps(record | {"top1": 101.0}))
    with pytest.raises(InputError, match=r"probe.json is damaged or of another version; restore it, or delete it"):
        run_study(settings(tmp_path / "run", images, headless, trials=3))


@pytest.mark.long
@pytest.mark.parametrize("head", ["random", None])
def test_a_classifier_that_is_not_fitted_is_timms_bit_for_bit(
    tmp_path: Path, images: Path, headless: Path, head: str | None
) -> None:
    given = settings(tmp_path, images, headless, head=head)
    context = prepare(given, Callbacks())
    torch.manual_seed(given.seed)
    wanted = Supernet("mobilevit_xxs", checkpoint=headless, num_classes=2, img_size=given.img_size)
    assert wanted.new_classifiers == ("head.fc",)
    state = context.evaluator.supernet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in wanted.state_dict().items())
    assert WarmUpRun(context, tmp_path).needs_probe == (head is None)


@pytest.mark.long
@pytest.mark.parametrize("head", ["probe", None])
def test_a_classifier_that_fits_is_kept(tmp_path: Path, images: Path, head: str | None) -> None:
    weights, notes = weights_of(tmp_path, 2), Notes()
    context = prepare(settings(tmp_path, images, weights, head=head), notes)
    assert not WarmUpRun(context, tmp_path).needs_probe
    told = "classifier: that of the given weights fits the data, and is kept"
    assert (told in describe(context)) == (head == "probe")


@pytest.mark.long
def test_another_studys_classifier_of_other_classes_is_fitted_again(tmp_path: Path, images: Path, whole: Path) -> None:
    """The study has the ten classes of the digits."""
    context = prepare(tiny(tmp_path, data_dir=str(images), resume_from=str(whole)), Callbacks())
    assert context.new_classifiers == ("head.fc",)
    assert prepare(tiny(tmp_path, resume_from=str(whole)), Callbacks()).new_classifiers == ()


def test_without_weights_there_is_nothing_to_fit_to(tmp_path: Path, ltmsearch: Ltmsearch) -> None:
    code, _, err = ltmsearch("run", *tiny_options(out=tmp_path / "run"), "--head", "probe")
    assert (code, err) == (
        2, "error: run: head 'probe' needs trained weights: give pretrained, checkpoint or resume_from too\n"
    )  # fmt: skip
    code, _, err = ltmsearch("run", *tiny_options(out=tmp_path / "run"), "--head", "probes")
    assert code == 2
    assert "head must be 'probe' or 'random', but got 'probes'" in err
    assert not (tmp_path / "run").exists()
