"""What a study tells its user before it begins: network, data, device, images and method, a line each."""

from ltmsearch.config.objective import MEASURES
from ltmsearch.costs import GIGA
from ltmsearch.costs.split import describe_split
from ltmsearch.schedules.space import colliding_ratios
from ltmsearch.search.setup import StudyContext


def describe(context: StudyContext) -> list[str]:
    """Notes for the user."""
    s, data, split = context.settings, context.evaluator.data, context.settings.split_layer
    return [
        _network(context),
        *(
            []
            if context.prior is None
            else [f"starts from the weights of {context.prior.run} and tries its front first"]
        ),
        *_latency(context),
        *([] if split is None else [describe_split(split, context.costs, context.space)]),
        f"data: {data.description}",
        *([] if s.num_classes in (None, data.num_classes) else [data.about_outputs(s.num_classes)]),
        f"device: {context.conditions}",
        *context.conditions.notes,
        *_method(context),
        *_classifier(context),
        *_collisions(context),
    ]


def _network(context: StudyContext) -> str:
    s, costs = context.settings, context.costs
    low, high = costs.table(context.space.choices).reachable()
    if context.measured is None and context.latency is None:
        low, _ = (end * GIGA for end in context.budgets[0].reachable())
    reach = f"{low / GIGA:.3f} to {high / GIGA:.3f} GFLOPs"
    if context.measured is not None:
        number = sum(map(len, context.measured.images))
        reach = f"{low / GIGA:.3f} GFLOPs or more, measured on {number} training images before each trial,"
    budget = "" if s.budget_gflops is None else f", budget {s.budget_gflops:g}"
    if s.lowest_gflops is not None:
        budget = f", budgets {s.lowest_gflops:g} to {s.budget_gflops:g}"
    number, size = len(context.space.layers), context.space.size
    sides = ", ".join(map(str, context.sizes.searched))
    return (
        f"{s.backbone} with {s.operator} merging: {number} layers, {size:,} schedules, "
        f"{reach} at {sides} px (plain network {costs.base / GIGA:.3f}; multiply-adds per image){budget}"
    )


def _latency(context: StudyContext) -> list[str]:
    if context.latency is None:
        return []
    low, high = context.budgets[0].reachable()
    reach = f"{context.space.size:,} schedules reach {low:.2f} to {high:.2f} ms"
    return [*context.latency.describe(), f"{reach}, budget {context.settings.budget_ms:g}"]


def _method(context: StudyContext) -> list[str]:
    s, data, weights = context.settings, context.evaluator.data, context.space.ib_weights
    growth = f"{s.proxy_img_size} px"
    if s.base_img_size < s.proxy_img_size:
        growth = f"{s.base_img_size} px growing to {s.proxy_img_size}"
    sampler: str = s.sampler
    if context.screens:
        sampler = f"scores {s.screened_schedules} schedules without training, and trains the best"
    elif s.sampler == "auto":
        sampler = "tpe, since costs of schedules depend on the weights"
    ib = "none in this search space" if s.proxy_steps else "not searched, since trials are not trained"
    if weights is not None:
        ib = f"weights 0 and {weights.low:g} to {weights.high:g}, β {s.ib_beta:g}"
    training = f"each {s.proxy_steps} steps at {s.proxy_img_size} px, learning rate {s.proxy_lr:g}"
    if not s.proxy_steps:
        training = "scored without training of their own"
    return [
        f"warm-up: {s.base_steps} steps of the plain network at {growth}, {s.sandwich_steps} sandwich steps at "
        f"{s.proxy_img_size}, batch {s.batch_size}, learning rate {s.warmup_lr:g}",
        f"objective: {MEASURES[s.axis.measure]}, in nats, on {data.search_size} training images set aside",
        f"sampler: {sampler}",
        f"trials: {s.trials}, {_baselines(context)}{training}; the best {s.rescore_candidates} scored again on "
        f"{data.validation_size} validation images, and reported on {data.report_name}",
        f"IB loss: {ib}",
    ]


def _baselines(context: StudyContext) -> str:
    """How many trials are baselines, where these are fitted to the budget."""
    number = len(context.settled.baselines or [])
    if number >= context.settings.trials:
        return f"no more than the {number} baselines, so that no schedule is searched (use --trials {3 * number}); "
    return f"{number} of them baselines; " if number else ""


def _classifier(context: StudyContext) -> list[str]:
    if context.new_classifiers:
        return [
            f"classifier: new, and fitted to the features of {len(context.probe_images):,} training images before the "
            "warm-up (--head random: not fitted)"
        ]
    return ["classifier: that of the given weights fits the data, and is kept"] * (context.settings.head == "probe")


def _collisions(context: StudyContext) -> list[str]:
    """Keep ratios that are the same network at the image size of the trials."""
    alike = colliding_ratios(context.space, context.proxy_costs)
    if not alike:
        return []
    by_groups: dict[str, list[str]] = {}
    for layer, groups in alike.items():
        text = ", ".join(" = ".join(f"{ratio:g}" for ratio in group) for group in groups)
        by_groups.setdefault(text, []).append(layer)
    shown = "; ".join(
        f"{text} at {layers[0]}" + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")
        for text, layers in by_groups.items()
    )
    size = context.settings.proxy_img_size
    return [f"at {size} px these keep ratios keep the same tokens and have equal scores: {shown}"]
