"""Schedules of equal cost for one backbone: uniform ones, a learned one, and those that a search finds."""

import time
from functools import cached_property
from pathlib import Path

from harness.commands import call_ltmsearch
from harness.learned_schedule import learn_schedule
from harness.records import write_json
from harness.short_training import COMMON, ShortTraining
from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.costs import GIGA, CostTable, backbone_costs
from ltmsearch.models import get_adapter
from ltmsearch.models.supernet import Supernet
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

NETS = ("base", "ltm", "ltm matched", "tome", "pool", "learned", "searched", "searched in range")
"""`base` is unmerged; `ltm matched` is of a ViT only."""
SHARE = 0.7
"""Wanted cost over that of the plain net, where merging reaches it."""
RANGE = 0.95
"""Start of the range of `searched in range`, over the target."""
LEARNING_DRAWS = 6


class EqualCostNets:
    """Recipes of nets that cost at most the target.

    The target is the cost of the uniform `ltm` that comes closest to `SHARE` of the plain net's, or, where merging
    cannot save that much, to a third of the way from the cheapest schedule to the plain net. Grids of tokens make costs
    jump; ratios of uniform schedules are real numbers.

    Args:
        training: Case, folder, data, and trained bases.
        search_settings: Options of `ltmsearch run`.
        learning_steps: Steps of the learned schedule.
    """

    def __init__(self, training: ShortTraining, search_settings: list[str], learning_steps: int) -> None:
        self.training, self.case, self.folder = training, training.case, training.folder
        self.search_settings, self.learning_steps = search_settings, learning_steps
        self.family = get_adapter(self.case.backbone).family
        self.nets = [net for net in NETS if net != "ltm matched" or self.family == "vit"]

    @cached_property
    def space(self) -> tuple[SearchSpace, CostTable]:
        """The family's search space and its costs."""
        classes = self.training.classes
        costs = backbone_costs(self.case.backbone, self.case.img_size, "ltm", num_classes=classes)
        space = SearchSpace.build(SpaceFile.load(None, family=self.family), costs)
        return space, costs.table(space.choices)

    @cached_property
    def target(self) -> int:
        """Multiply-adds that no net but the base may exceed."""
        _, table = self.space
        low, plain = table.reachable()[0], table.base
        wanted = max(SHARE * plain, low + (plain - low) / 3)
        return min((macs for _, macs in self._uniforms("ltm", "soft")), key=lambda macs: abs(macs - wanted))

    def _uniforms(self, operator: str, form: Form | None = None) -> list[tuple[MergeSchedule, int]]:
        """Uniform schedules and their costs; in a ViT at three layers, since merges accumulate."""
        case = self.case
        costs = backbone_costs(case.backbone, case.img_size, operator, num_classes=self.training.classes)
        layers = costs.layers
        if self.family == "vit":
            layers = tuple(layers[len(layers) * quarter // 4] for quarter in (1, 2, 3))
        tried = [MergeSchedule.uniform(layers, place / 200, operator, form) for place in range(199, 19, -1)]
        return [(each, costs.macs(each)) for each in tried]

    def recipe(self, net: str) -> Recipe:
        """Recipe of a net; made where it is missing."""
        path = self.folder / f"{net.replace(' ', '-')}.yaml"
        if not path.exists():
            schedule, case = self._schedule(net), self.case
            costs = backbone_costs(case.backbone, case.img_size, schedule.operator, num_classes=self.training.classes)
            about = {"gflops": costs.gflops(schedule), "of_plain": costs.macs(schedule) / costs.base}
            self.training.make_recipe(schedule, provenance=about).save(path)
        return load_recipe(path)

    def _schedule(self, net: str) -> MergeSchedule:
        if net == "base":
            return MergeSchedule(keep_ratios={})
        if net == "searched":
            return self._search("search", f"{self.target / GIGA:.7f}")
        if net == "searched in range":
            return self._search("search-range", f"{RANGE * self.target / GIGA:.7f}-{self.target / GIGA:.7f}")
        if net == "learned":
            return self._learn()
        operator, _, matched = net.partition(" ")
        form: Form | None = None
        if operator == "ltm":
            form = "matched" if matched else "soft"
        uniforms = self._uniforms(operator, form)
        return max((pair for pair in uniforms if pair[1] <= self.target), key=lambda pair: pair[1])[0]

    def _search(self, name: str, budget: str) -> MergeSchedule:
        """Best of the front that `ltmsearch run` finds under a budget, from the base of seed 0."""
        run, begun, data_dir = self.folder / name, time.perf_counter(), self.training.data_dir
        size = str(self.case.img_size)
        command = ["run", "--backbone", self.case.backbone, "--budget-gflops", budget, "--out", str(run)]
        command += ["--img-size", size, "--proxy-img-size", size, "--checkpoint", str(self.training.base(0))]
        command += [*self.search_settings, *(["--data-dir", str(data_dir)] if data_dir else [])]
        call_ltmsearch(command, run.with_suffix(".log"))
        call_ltmsearch(["export", str(run), "--top", "1"], run.with_suffix(".log"))
        write_json(self.folder / f"{name}.seconds", time.perf_counter() - begun)
        (exported,) = run.glob("export/*/recipe.yaml")
        return load_recipe(exported).schedule

    def _learn(self) -> MergeSchedule:
        """Schedule learned by gradient, from the same base."""
        space, table = self.space
        begun, case, training = time.perf_counter(), self.case, self.training
        supernet = Supernet(
            case.backbone, checkpoint=training.base(0), num_classes=training.classes, img_size=case.img_size
        )
        training.runtime.prepare(supernet)
        batches = training.data.train_batches(batch_size=COMMON["batch_size"], steps=self.learning_steps, seed=99)
        learned = learn_schedule(
            supernet, space, table, self.target, batches, draws=LEARNING_DRAWS, runtime=training.runtime, seed=0
        )
        write_json(self.folder / "learned.seconds", time.perf_counter() - begun)
        choices = [[str(choice) for choice in options] for options in space.choices]
        content = {"choices": choices, "probabilities": learned.probabilities, "history": learned.history}
        write_json(self.folder / "learned.json", content)
        return learned.schedule

    def seconds(self) -> dict[str, float]:
        """Seconds of each search and of learning."""
        return {path.stem: float(path.read_text()) for path in sorted(Path(self.folder).glob("*.seconds"))}
