"""The verdict of studies with hand-made answers: the comparison, the recommendation and the marks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.records import LAYERS, PLAIN, make_trial

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.verdict import Verdict, judge, verdict_sentences
from ltmsearch.search.answers import Answers
from ltmsearch.search.records import TrialRecord

AXIS, KL = CostAxis(measure="loss"), CostAxis(measure="kl")
IMAGES = 1000
"""Of these, the plain network is right on the first 800."""


def answers(changes: Mapping[int, tuple[range, range]], groups: np.ndarray | None = None) -> Answers:
    """Trial → images on which it is wrong and the plain network right, and images where it is the other way round."""
    plain = np.arange(IMAGES) >= 800
    trials = {}
    for trial, (lost, gained) in changes.items():
        wrong = plain.copy()
        wrong[lost], wrong[gained] = True, False
        trials[trial] = wrong.astype(np.int64)
    own = np.arange(IMAGES) if groups is None else groups
    return Answers(labels=np.zeros(IMAGES, dtype=np.int64), groups=own, plain=plain.astype(np.int64), trials=trials)


def lose(images: int, start: int = 0) -> tuple[range, range]:
    return range(start, start + images), range(0)


def finalist(trial: int, gflops: float, loss: float, **fields: Any) -> TrialRecord:
    return make_trial(trial, gflops, 80.0, 80.0, rescored_loss=loss, **fields)


def uniform(trial: int, gflops: float, loss: float, **fields: Any) -> TrialRecord:
    return finalist(trial, gflops, loss, kind="baseline", label="uniform 0.5", **fields)


DEAR, MIDDLE, CHEAP = finalist(3, 1.2, 0.5), finalist(4, 1.1, 0.6), finalist(5, 1.0, 0.7)
FRONT = [DEAR, MIDDLE, CHEAP]


def judged(
    records: list[TrialRecord],
    changes: Mapping[int, tuple[range, range]],
    tolerance: float = 0.5,
    axis: CostAxis = AXIS,
) -> tuple[Verdict, str]:
    verdict = judge(records, answers(changes), axis, tolerance=tolerance)
    return verdict, " ".join(verdict_sentences(verdict, axis))


# -- the comparison with the best baseline ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("searched", "baseline", "words"),
    [
        (lose(10), lose(60, 100), "The search beats the best baseline within the budget"),
        (lose(60), lose(10, 100), "The best baseline within the budget beats the search"),
        (lose(40), lose(45, 100), "The search is not told apart from the best baseline within the budget"),
        (lose(40), lose(40), "The search is not told apart from the best baseline within the budget"),
    ],
    ids=["wins", "loses", "close", "equal"],
)
def test_search_and_best_baseline(searched: Any, baseline: Any, words: str) -> None:
    verdict, text = judged([DEAR, uniform(1, 1.15, 0.9)], {3: searched, 1: baseline})
    found = verdict.comparison
    assert found is not None
    assert (found.searched.trial, found.baseline.trial) == (3, 1)
    assert found.difference.value == pytest.approx((len(baseline[0]) - len(searched[0])) / IMAGES * 100)
    assert f"{words}: trial 3 less trial 1 (uniform 0.5) is {found.difference} points of top-1 (95 % interval " in text
    assert verdict.images == IMAGES


def test_rivals_are_chosen_by_the_measure_and_not_by_their_answers() -> None:
    records = [DEAR, CHEAP, uniform(1, 1.15, 0.9), uniform(2, 1.19, 0.8), uniform(6, 1.3, 0.1, feasible=False), PLAIN]
    verdict, _ = judged(records, {3: lose(90), 5: lose(0), 1: lose(0), 2: lose(50), 6: lose(0), 0: lose(0)})
    assert verdict.comparison is not None
    assert (verdict.comparison.searched.trial, verdict.comparison.baseline.trial) == (3, 2)
    by_kl = [replace(DEAR, rescored_kl=0.3), replace(CHEAP, rescored_kl=0.2), *records[2:]]
    verdict, _ = judged(by_kl, {n: lose(0) for n in (3, 5, 1, 2, 6, 0)}, axis=KL)
    assert verdict.comparison is not None
    assert verdict.comparison.searched.trial == 5


def test_without_a_baseline_there_is_no_comparison() -> None:
    plain = replace(PLAIN, feasible=True)
    for records in (FRONT, [*FRONT, plain], [*FRONT, uniform(1, 1.15, 0.9)]):  # the uniform one has no answers
        verdict, text = judged(records, {3: lose(0), 4: lose(0), 5: lose(0), 0: lose(0)})
        assert verdict.comparison is None
        assert "baseline" not in text
        assert verdict.as_json()["searched_less_best_baseline"] is None


def test_without_a_front_there_is_no_verdict() -> None:
    over = [replace(record, feasible=False) for record in FRONT]
    verdict, text = judged(over, {3: lose(0), 4: lose(0), 5: lose(0)})
    assert (verdict.comparison, verdict.recommendation, verdict.not_better) == (None, None, frozenset())
    assert text == ""
    assert judged([], {})[1] == ""


# -- the recommendation -----------------------------------------------------------------------------------------------


def test_the_cheapest_within_tolerance_is_recommended() -> None:
    verdict, text = judged(FRONT, {3: lose(0), 4: lose(1), 5: lose(30)})
    best = verdict.recommendation
    assert best is not None
    assert (best.trial, best.reason, best.best, best.points) == (MIDDLE, "within tolerance", DEAR, 3)
    assert best.loss.value == pytest.approx(-0.1)
    assert text == (
        "Take trial 4 (1.1000 GFLOPs): before training by its recipe, its top-1 is −0.1 ± 0.1 points against the plain "
        "network's, a loss below 0.5 points with 95 % confidence (1000 images)."
    )
    assert judged(FRONT, {3: lose(0), 4: lose(1), 5: lose(30)}, tolerance=5)[0].recommended == 5


def test_tests_stop_at_the_first_that_fails() -> None:
    """Without that, testing many points would find one within tolerance by chance."""
    verdict, _ = judged(FRONT, {3: lose(0), 4: lose(30), 5: lose(0)})
    assert verdict.recommended == 3
    assert verdict.recommendation is not None
    assert verdict.recommendation.reason == "within tolerance"


def test_a_loss_must_be_shown_to_be_below_the_tolerance() -> None:
    """A tenth of a point is lost by all, but the more answers change, the less that says about other images."""
    few = {n: lose(1) for n in (3, 4, 5)}
    many = {n: (range(16), range(800, 815)) for n in (3, 4, 5)}
    for changes, reason in ((few, "within tolerance"), (many, "not told apart")):
        verdict, _ = judged(FRONT, changes)
        assert verdict.recommendation is not None
        assert verdict.recommendation.loss.value == pytest.approx(-0.1)
        assert verdict.recommendation.reason == reason


def test_otherwise_the_cheapest_that_is_not_told_apart_from_the_best() -> None:
    verdict, text = judged(FRONT, {3: lose(40), 4: lose(45, 100), 5: lose(150, 300)})
    best = verdict.recommendation
    assert best is not None
    assert (best.trial, best.reason, best.best) == (MIDDLE, "not told apart", DEAR)
    assert text.startswith(
        "Take trial 4 (1.1000 GFLOPs), the cheapest that 1000 images do not tell apart from the best, trial 3: before "
        "training by its recipe, its top-1 is −4.5 ± 0.7 points against the plain network's. No schedule is shown to "
        "lose less than 0.5 points."
    )
    # The same, where the cheapest point would pass after the middle one fails.
    assert judged(FRONT, {3: lose(40), 4: lose(150, 300), 5: lose(45, 100)})[0].recommended == 3


def test_otherwise_the_best() -> None:
    verdict, text = judged(FRONT, {3: lose(40), 4: lose(100), 5: lose(150)})
    assert verdict.recommendation is not None
    assert (verdict.recommendation.trial, verdict.recommendation.reason) == (DEAR, "best")
    assert "Take trial 3 (1.2000 GFLOPs), the best of the front, because cheaper ones are worse: " in text
    verdict, text = judged([DEAR], {3: lose(40)})
    assert verdict.recommended == 3
    assert "the only point of the front" in text


def test_the_plain_network_on_the_front_is_no_evidence() -> None:
    plain = replace(PLAIN, feasible=True, rescored_loss=0.1)
    verdict, text = judged([plain], {0: lose(0)})
    assert verdict.recommended == 0
    assert text == "Take the plain network (1.5467 GFLOPs): no other schedule is on the front."
    # It loses nothing, and yet schedules after it are tested.
    verdict, _ = judged([plain, *FRONT], {0: lose(0), 3: lose(1), 4: lose(30), 5: lose(90)})
    assert verdict.recommended == 3
    assert verdict.recommendation is not None
    assert verdict.recommendation.reason == "within tolerance"
    # All others are significantly worse.
    verdict, text = judged([plain, *FRONT], {0: lose(0), 3: lose(30), 4: lose(60), 5: lose(90)})
    assert verdict.recommended == 0
    assert text.startswith(
        "Take the plain network (1.5467 GFLOPs), the best of the front, because cheaper ones are worse. No schedule is "
        "shown to lose less than 0.5 points."
    )


def test_the_plain_network_on_smaller_images_is_a_rival() -> None:
    nothing = dict.fromkeys(LAYERS, 1.0)
    small = finalist(7, 1.15, 0.55, kind="baseline", label="plain at 192 px", keep_ratios=nothing, img_size=192)
    verdict, text = judged([DEAR, small], {3: lose(90), 7: lose(0)})
    assert verdict.comparison is not None
    assert verdict.comparison.baseline == small
    assert "beats the search: trial 3 less trial 7 (plain at 192 px)" in text
    assert verdict.recommended == 7, "it is no worse than the best by the measure"


def test_smaller_images_that_do_better_are_named_if_not_searched() -> None:
    small = uniform(6, 1.0, 0.4)
    small = replace(small, label="plain at 192 px", schedule=replace(small.schedule, img_size=192))
    changes = {3: lose(60), 1: lose(80), 6: lose(20)}
    records, one_size = [DEAR, uniform(1, 1.1, 0.8), small], replace(AXIS, one_size=True)
    verdict, words = judged(records, changes, axis=one_size)
    assert verdict.recommended == 3
    assert verdict.comparison is not None
    assert verdict.comparison.baseline.trial == 1, "of the same size"
    assert "Smaller images do better by the measure: trial 6 (plain at 192 px, 1.0000 GFLOPs) less trial 3" in words
    assert words.endswith("Search them with --search-img-size auto.")
    worse = replace(small, rescored_loss=0.9)
    assert "Smaller images" not in judged([*records[:2], worse], changes, axis=one_size)[1]


def test_tolerance_zero_needs_a_gain() -> None:
    changes = {3: (range(0), range(800, 830)), 4: lose(0), 5: lose(0)}
    assert judged(FRONT, changes, tolerance=0)[0].recommended == 3


# -- marks ------------------------------------------------------------------------------------------------------------


def test_points_no_better_than_a_cheaper_one_are_marked() -> None:
    assert judged(FRONT, {3: lose(10), 4: lose(60, 100), 5: lose(150, 300)})[0].not_better == frozenset()
    assert judged(FRONT, {3: lose(10), 4: lose(12), 5: lose(150, 300)})[0].not_better == {3}
    assert judged(FRONT, {3: lose(10), 4: lose(90, 100), 5: lose(9)})[0].not_better == {3, 4}, "not only the next one"
    assert judged(FRONT, {3: lose(10), 4: lose(10), 5: lose(10)})[0].not_better == {3, 4}, "equal answers"


def test_with_two_costs_cheaper_means_by_both() -> None:
    axis = CostAxis(second=CostAxis(name="tokens_sent"))
    few = replace(DEAR, tokens_sent=50.0)
    many = replace(MIDDLE, tokens_sent=150.0)
    alike = {3: lose(10), 4: lose(10)}
    assert judged([few, many], alike, axis=axis)[0].not_better == frozenset(), "the dear one sends fewer tokens"
    assert judged([few, replace(many, tokens_sent=50.0)], alike, axis=axis)[0].not_better == {3}


def test_with_two_costs_the_first_decides_what_to_take() -> None:
    axis = CostAxis(second=CostAxis(name="tokens_sent"))
    # Trial 6 is on the front only because it sends few tokens: bad answers of it do not end the tests.
    tokens = replace(finalist(6, 1.15, 0.65), tokens_sent=10.0)
    records = [tokens, *(replace(record, tokens_sent=100.0) for record in FRONT)]
    verdict, _ = judged(records, {3: lose(0), 6: lose(90), 4: lose(0), 5: lose(1)}, axis=axis)
    assert verdict.recommended == 5


def test_json_has_numbers_and_no_infinity() -> None:
    records = [DEAR, uniform(1, 1.15, 0.9)]
    verdict, _ = judged(records, {3: lose(10), 1: lose(60, 100)})
    found = verdict.as_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["images"] == IMAGES
    assert found["recommendation"]["trial"] == 3
    assert found["recommendation"]["difference_to_plain"] == pytest.approx(-1)
    compared = found["searched_less_best_baseline"]
    assert (compared["searched"], compared["baseline"], compared["difference"]) == (3, 1, pytest.approx(5))
    assert compared["interval"][0] < 5 < compared["interval"][1]
    one_group = answers({3: lose(10), 1: lose(60)}, groups=np.zeros(IMAGES, dtype=np.int64))
    found = judge(records, one_group, AXIS, tolerance=0.5).as_json()
    json.dumps(found, allow_nan=False)
    assert found["recommendation"]["se"] is None
    assert found["searched_less_best_baseline"]["interval"] == [None, None]
