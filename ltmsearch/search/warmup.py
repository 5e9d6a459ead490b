"""The warm-up of the shared weights, saved at intervals so that an interrupted one continues.

Before its first step new classifiers are fitted by a linear probe, whose record is `probe.json`. The fitted weights are
saved as the progress of a warm-up without steps, so the probe is not repeated either. Where the objective is KL
divergence, the plain network as it is after the base steps becomes the teacher: the progress has its weights, and at
the end its predictions are written to `teacher.safetensors`.
"""

import logging
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ltmsearch.callbacks import Callbacks
from ltmsearch.engine.evaluation import Batches
from ltmsearch.engine.steps import supernet_optimizer
from ltmsearch.errors import InputError
from ltmsearch.io.files import write_atomic
from ltmsearch.io.safetensors_state import load_state, save_state
from ltmsearch.search.masks import unfitted_masks
from ltmsearch.search.run import PROBE_RECORD
from ltmsearch.search.setup import StudyContext, warm_up_plan

_log = logging.getLogger(__name__)

PROGRESS = "warmup.safetensors"
"""File in the run directory during the warm-up."""
SAVE_SECONDS = 30.0
"""Least seconds between two saves."""
SAVING_SHARE = 0.02
"""Largest share of the time that may go into saving."""


class WarmUpRun:
    """Fits the new classifiers of a study, and trains its shared weights."""

    def __init__(self, context: StudyContext, folder: Path) -> None:
        self.context = context
        self.folder = folder
        self.path = folder / PROGRESS
        self.plan = warm_up_plan(context.settings)
        self.optimizer = supernet_optimizer(context.evaluator.supernet, self.plan.lr)
        self.done = 0
        """Steps taken so far."""
        self.needs_probe = bool(context.new_classifiers)
        """Whether new classifiers are still to be fitted."""
        self._teacher: nn.Module | None = None
        self._saved, self._saving = time.monotonic(), 0.0

    def resume(self) -> int:
        """Load an interrupted warm-up, and return the steps that it had taken; 0 if there is none.

        Raises:
            InputError: If its file is damaged or of another study.
        """
        if not self.path.exists():
            return 0
        state = load_state(self.path)
        wrong = f"{self.path} must be the warm-up of this study, but"
        if state.get("space") != self.context.space.digest() or state.get("steps") != self.plan.steps:
            raise InputError(f"{wrong} is of another study; move it away to repeat the warm-up")
        try:
            done = int(state["done"])
            if (taught := state["teacher"]) is not None:
                self._copy_network().load_state_dict(taught)
            self.context.evaluator.supernet.load_state_dict(state["supernet"])
            self.optimizer.load_state_dict(state["optimizer"])
            _match_memory_layout(self.optimizer)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{wrong} does not match ({reason}); move it away to repeat the warm-up") from error
        self.done, self.needs_probe = done, False
        return done

    def fit_classifiers(self, callbacks: Callbacks, confirm: Callable[[], None]) -> None:
        """Fit the new classifiers, record how well the plain network then classifies, and save both.

        `confirm` is called before anything is written.
        """
        context, images = self.context, self.context.probe_images

        def watch(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
            callbacks.phase("fitting the classifier", len(images))
            done = 0
            for batch in batches:
                yield batch
                callbacks.advance(done := done + len(batch[1]))

        record = context.evaluator.fit_classifiers(context.new_classifiers, images=images, watch=watch)
        confirm()
        write_atomic(self.folder / PROBE_RECORD, record.model_dump_json(indent=1) + "\n")
        self.save()
        self.needs_probe = False
        callbacks.note(str(record))

    def run(self, callbacks: Callbacks, confirm: Callable[[], None]) -> None:
        """Take the remaining steps, saved at intervals; `confirm` is called before anything is written.

        Before the first step, gradient masks of trained weights are fitted, each while its layer alone merges.
        """
        context, settings = self.context, self.context.settings
        masks = {} if self.done else unfitted_masks(context)
        for number, (layer, ratio) in enumerate(masks.items()):
            if not number:
                callbacks.phase("fitting masks", len(masks))
            context.evaluator.fit_mask(layer, ratio)
            callbacks.advance(number + 1)
        callbacks.phase("warming up", self.plan.steps)
        for loss in self.steps():
            callbacks.advance(self.done, f"loss {loss:.2f}")
            _log.debug("warm-up step %d: loss %.4f", self.done, loss)
            if self.is_due():
                confirm()
                self.save()
        if self._has_teacher:
            context.evaluator.teacher.learn(self.teacher(), context.evaluator.data, context.evaluator.scoring, settings)
            confirm()
            context.evaluator.teacher.save(self.folder)

    def steps(self) -> Iterator[float]:
        """Take the remaining steps; yields the loss after each."""
        for loss in self.context.warm_up(self.optimizer, self.done, self.teacher if self._has_teacher else None):
            self.done += 1
            yield loss

    @property
    def _has_teacher(self) -> bool:
        return self.context.settings.axis.measure == "kl"

    def teacher(self) -> nn.Module:
        """The plain network as it is at the first call, frozen and in evaluation mode."""
        return self._copy_network() if self._teacher is None else self._teacher

    def _copy_network(self) -> nn.Module:
        copy = deepcopy(self.context.evaluator.supernet.model).eval().requires_grad_(False)
        copy.zero_grad(set_to_none=True)
        self._teacher = copy
        return copy

    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= max(SAVE_SECONDS, self._saving / SAVING_SHARE)

    def save(self) -> None:
        start = time.monotonic()
        state = {
            "space": self.context.space.digest(), "steps": self.plan.steps, "done": self.done,
            "supernet": self.context.evaluator.supernet.state_dict(), "optimizer": self.optimizer.state_dict(),
            "teacher": None if self._teacher is None else self._teacher.state_dict(),
        }  # fmt: skip
        save_state(self.path, state)
        self._saved = time.monotonic()
        self._saving = self._saved - start
        _log.debug("saved the warm-up after step %d in %.2f s", self.done, self._saving)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _match_memory_layout(optimizer: Optimizer) -> None:
    """Give an optimizer's averages the memory layout of their parameters, which fused optimizers require."""
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                held[name] = torch.empty_like(parameter).copy_(value)
