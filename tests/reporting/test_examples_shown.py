"""Which reported images are shown with their merges, and their file."""

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.records import LAYERS, PLAIN, RECORDS, START_UP, UNIFORM, make_answers, make_trial
from support.sizes import TINY, TINY_VIT

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.objective import CostAxis
from ltmsearch.config.settings import StudySettings
from ltmsearch.errors import InputError
from ltmsearch.reporting.examples import (
    Changes,
    Example,
    Examples,
    Picture,
    changes_of,
    choose_images,
    draw_examples,
    merged_trial,
    read_examples,
    write_examples,
)
from ltmsearch.reporting.findings import Findings, find
from ltmsearch.reporting.merges import pixels_seen
from ltmsearch.reporting.merges.regions import resized
from ltmsearch.search.answers import Answers
from ltmsearch.search.setup import prepare

AXIS = CostAxis(budget=1.2)
LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1])
PLAIN_ANSWERS = np.array([0, 0, 1, 0, 2, 0, 1, 1])
MERGED = np.array([1, 1, 1, 1, 2, 1, 0, 1])


def answers(merged: np.ndarray = MERGED) -> Answers:
    return Answers(labels=LABELS, groups=np.arange(8), plain=PLAIN_ANSWERS, trials={3: merged})


def test_changes_are_counted_by_what_they_cost() -> None:
    assert changes_of(answers(), 3) == Changes(images=8, lost=2, won=2, other=1)
    assert changes_of(answers(), 3).changed == 5
    assert changes_of(answers(PLAIN_ANSWERS), 3).changed == 0


def test_each_way_to_change_is_shown_and_then_each_class() -> None:
    assert choose_images(answers(), 3) == [0, 3, 5, 2, 4, 7]
    assert choose_images(answers(PLAIN_ANSWERS), 3) == [0, 2, 4], "none changed: one image of each class"
    everything = (PLAIN_ANSWERS + 1) % 3
    assert len(choose_images(answers(everything), 3)) == 3, "all changed"


def test_the_recommended_network_is_shown_if_it_merges() -> None:
    found = find(RECORDS, AXIS, make_answers(RECORDS))
    shown = merged_trial(found)
    assert shown is not None
    assert found.verdict is not None
    assert shown.trial == found.verdict.recommended
    smaller = make_trial(9, 0.6, 80.0, 88.0, keep_ratios=dict(PLAIN.schedule.keep_ratios), img_size=160)
    records = [PLAIN, UNIFORM, smaller]
    found = find(records, CostAxis(budget=1.2, one_size=False), make_answers(records))
    assert found.verdict is not None
    assert found.verdict.recommended == 9, "smaller images, without merging"
    assert merged_trial(found) == UNIFORM, "the best baseline, since nothing merges on the front"
    both = Findings(axis=AXIS, front=(START_UP, UNIFORM), layers=LAYERS)
    assert merged_trial(both) == START_UP, "what was searched rather than a better baseline"
    assert merged_trial(find([PLAIN], AXIS, make_answers([PLAIN]))) is None


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    picture = Picture(words=("image", "112 x 112 px"), png="data:image/png;base64,AAAA")
    example = Example(image=7, label="shirt", plain="shirt", merged="dress", pictures=(picture,))
    examples, path = Examples(trial=3, digest="0", examples=(example,)), tmp_path / "examples.json"
    assert read_examples(path) is None
    write_examples(examples, path)
    assert read_examples(path) == examples
    path.write_text(path.read_text().replace("data:image/png;base64,AAAA", "https://example.org/x.png"))
    with pytest.raises(InputError, match=r"examples\.json is damaged"):
        read_examples(path)
    write_examples(None, path)
    assert read_examples(path) is None, "nothing of an earlier call stays"


def test_the_images_with_these_numbers_are_drawn() -> None:
    context = prepare(StudySettings.make("test", **{**TINY, **TINY_VIT, "scoring_batch_size": 5}), Callbacks())
    batches = [x for x, _ in context.evaluator.held_out("report")]
    number = sum(map(len, batches))
    assert len(batches) > 2
    labels, ratios = np.arange(number) % 10, dict.fromkeys(context.space.layers, 0.5)
    merged = labels.copy()
    merged[[7, 13, 21]] += 1
    record = make_trial(3, 0.004, 80.0, 80.0, keep_ratios=ratios)
    own = Answers(labels=labels, groups=np.arange(number), plain=labels, trials={3: merged})
    found = draw_examples(context, Findings(axis=AXIS, front=(record,), layers=tuple(ratios)), own)
    assert found is not None
    assert [each.image for each in found.examples] == [7, 13, 21, 0, 1, 2]
    seen = pixels_seen(torch.cat(batches).numpy(), mean=(0.5,) * 3, std=(0.5,) * 3)
    for each in found.examples:
        assert [picture.words[0] for picture in each.pictures] == ["image", *ratios]
        drawn = np.asarray(Image.open(BytesIO(b64decode(each.pictures[0].png.partition(",")[2]))).convert("RGB"))
        far = [np.abs(resized(image, drawn.shape[:2]).astype(float) - drawn).mean() for image in seen]
        assert int(np.argmin(far)) == each.image
