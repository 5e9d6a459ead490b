"""One trial: what is suggested, and what an evaluator answers."""

from dataclasses import replace
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler, TPESampler
from torch import Tensor

from ltmsearch.engine.evaluation import fit_ib, ib_images, preserve_batchnorm, recalibrate
from ltmsearch.engine.ib_loss import IBLoss
from ltmsearch.engine.steps import proxy_train
from ltmsearch.errors import TrialDiverged
from ltmsearch.schedules.schedule import Choice, MergeSchedule
from ltmsearch.schedules.space import IBWeights, SearchSpace
from ltmsearch.search.teacher import trial_batches
from ltmsearch.search.trial import STATISTICS_BATCH, Evaluator, load_parameters, parameters, suggest

WEIGHTS = IBWeights(low=0.01, high=1.0)
SPACE = SearchSpace(
    layers=("a", "b"), choices=((Choice(1.0), Choice(0.5)),) * 2, layer_tokens=(4, 4), ib_weights=WEIGHTS
)


def test_every_parameter_is_suggested_by_a_sampler_of_its_own() -> None:
    """So that it does not depend on how many were drawn before it in this process."""

    def draw(already: dict[str, float]) -> tuple[list[int], float]:
        study = optuna.create_study()
        study.enqueue_trial(already)
        indices, weight = suggest(study.ask(), SPACE, lambda place: RandomSampler(seed=place))
        return indices.tolist(), weight

    (a, b), weight = draw({})
    assert 0.01 <= weight <= 1.0
    assert draw({"a": 1 - a}) == ([1 - a, b], weight)
    assert draw({"a": a, "b": 1 - b}) == ([a, 1 - b], weight)
    assert draw({"ib_weight": WEIGHTS.zero}) == ([a, b], 0.0)
    assert draw({"ib_weight": 0.25}) == ([a, b], 0.25)


@pytest.mark.parametrize(
    "sampler",
    [
        lambda seed: TPESampler(multivariate=True, n_startup_trials=4, seed=seed),
        lambda seed: GPSampler(n_startup_trials=4, seed=seed),
        lambda seed: NSGAIISampler(population_size=4, seed=seed),
    ],
    ids=["tpe", "gp", "nsga2"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_learn_the_weight_jointly_with_the_layers(sampler: Any) -> None:
    """Zero included: where zero is best, it is proposed more often than one time in five."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    weights = []
    for number in range(16):
        study.sampler = sampler(number)
        trial = study.ask()
        indices, weight = suggest(trial, SPACE, lambda place, number=number: sampler(100 * number + place))  # type: ignore[misc]
        weights.append(weight)
        study.tell(trial, [float(weight != 0), float(indices.sum())])
    assert all(weight == 0 or 0.01 <= weight <= 1 for weight in weights)
    assert sum(weight == 0 for weight in weights[8:]) >= 3
    assert all(set(trial.params) == {"a", "b", "ib_weight"} for trial in study.trials)


def start_of(evaluator: Evaluator) -> dict[str, Tensor]:
    """Shared weights to start from, whatever the trials before left in the supernet."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value if ".merging." in name else 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in parameters(evaluator.supernet).items()
    }


def of_steps(evaluator: Evaluator, steps: int) -> Evaluator:
    """The same evaluator of trials with so many steps."""
    return replace(evaluator, settings=evaluator.settings.model_copy(update={"proxy_steps": steps}))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_weight_zero_is_cross_entropy_bit_for_bit(evaluator: Evaluator, half: MergeSchedule) -> None:
    start, settings, supernet = start_of(evaluator), evaluator.settings, evaluator.supernet
    result = evaluator.evaluate(start, half, ib_weight=0.0, seed=3)
    load_parameters(supernet, start)
    with preserve_batchnorm(supernet):
        batches = trial_batches(evaluator.data, settings, settings.batch_size)
        proxy_train(supernet, half, batches, lr=settings.proxy_lr, runtime=evaluator.training)
        by_hand = evaluator.score(half, "search")
    assert equal(result.weights, parameters(supernet))
    assert (result.score.top1, result.score.top1_se, result.score.loss) == (by_hand.top1, by_hand.top1_se, by_hand.loss)
    assert result.score.ib is not None
    assert by_hand.ib is None


def test_ib_statistics_are_of_the_plain_network_and_of_training_images(
    evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand; the same for every schedule that starts from the same weights."""
    start, data, settings = start_of(evaluator), evaluator.data, evaluator.settings
    used: list[dict[str, Tensor]] = []

    def train(*args: Any, ib: tuple[float, IBLoss], **options: Any) -> None:
        used.append({name: value.clone() for name, value in ib[1].state_dict().items()})

    monkeypatch.setattr("ltmsearch.search.trial.proxy_train", train)
    quarter = MergeSchedule.uniform(evaluator.supernet.layers, 0.25)
    for schedule in (half, quarter):
        evaluator.evaluate(start, schedule, ib_weight=1.0, seed=3)
    images = data.training_sample(ib_images(data.num_classes), seed=settings.seed)
    assert not set(images) & data.set_aside, "no search image"
    supernet, by_hand = evaluator.supernet, evaluator._new_ib()
    load_parameters(supernet, start)
    plain = MergeSchedule.uniform(supernet.layers, 1.0)
    with supernet.active(plain), preserve_batchnorm(supernet):
        recalibrate(supernet, data.calibration_batches(batch_size=STATISTICS_BATCH), evaluator.scoring)
        batches = data.ordered_batches(images, batch_size=STATISTICS_BATCH)
        assert fit_ib(by_hand, supernet.model, batches, evaluator.scoring)
    for name, value in by_hand.state_dict().items():
        assert torch.equal(used[0][name], value), name
        assert torch.equal(used[1][name], value), name


def test_scores_and_statistics_have_their_own_batches(
    evaluator: Evaluator, half: MergeSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, set[int]] = {}

    def batches(name: str) -> Any:
        original = getattr(evaluator.data, name)
        seen = sizes.setdefault(name, set())
        return lambda *args, batch_size, **options: (
            seen.add(batch_size) or original(*args, batch_size=batch_size, **options)
        )

    for name in ("search_batches", "calibration_batches"):
        monkeypatch.setattr(evaluator.data, name, batches(name))
    settings = evaluator.settings.model_copy(update={"scoring_batch_size": 5})
    replace(evaluator, settings=settings).score(half, "search")
    assert sizes == {"search_batches": {5}, "calibration_batches": {STATISTICS_BATCH}}


@pytest.mark.parametrize("steps", [1, 3])
def test_the_ib_weight_determines_the_trial(evaluator: Evaluator, half: MergeSchedule, steps: int) -> None:
    start, longer = start_of(evaluator), of_steps(evaluator, steps)
    none, some, more, again = (longer.evaluate(start, half, ib_weight=w, seed=3) for w in (0.0, 0.5, 5.0, 0.5))
    assert equal(some.weights, again.weights)
    assert some.score == again.score
    assert not equal(none.weights, some.weights)
    assert not equal(some.weights, more.weights)
    assert len({result.score.loss for result in (none, some, more)}) == 3
    assert len({result.score.ib for result in (none, some, more)}) == 3


def test_an_evaluation_leaves_no_trace(evaluator: Evaluator, half: MergeSchedule) -> None:
    supernet, random = evaluator.supernet, torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    evaluator.evaluate(start_of(evaluator), half, ib_weight=1.0, seed=3)
    assert equal(buffers, dict(supernet.named_buffers()))
    assert not supernet.model.get_classifier()._forward_pre_hooks  # type: ignore[operator]
    assert supernet.schedule.merging_layers == ()
    assert torch.equal(torch.get_rng_state(), random)


def test_features_that_are_not_finite_fail_the_trial_alone(evaluator: Evaluator, half: MergeSchedule) -> None:
    start = start_of(evaluator)
    broken = {name: torch.full_like(value, float("nan")) for name, value in start.items()}
    buffers = {name: buffer.clone() for name, buffer in evaluator.supernet.named_buffers()}
    for weight, steps in ((1.0, 1), (0.0, 0)):
        with pytest.raises(TrialDiverged, match="not finite"):
            evaluator.evaluate(broken, half, ib_weight=weight, seed=0, steps=steps)
    assert equal(buffers, dict(evaluator.supernet.named_buffers()))
    assert evaluator.evaluate(start, half, ib_weight=1.0, seed=0).score.loss > 0
