"""Reported images that a merged network answers otherwise than the plain one, and some that it does not.

File `examples.json` of a run: their merges as pictures, which the report shows. They are drawn when a study ends, with
its weights and images.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltmsearch.errors import InputError
from ltmsearch.io.files import read_json, write_atomic
from ltmsearch.models import input_config
from ltmsearch.models.merge_traces import LayerMerges, trace_merges
from ltmsearch.reporting.findings import Findings
from ltmsearch.reporting.merges import in_colour, pixels_seen
from ltmsearch.reporting.merges.encoding import data_url
from ltmsearch.reporting.merges.regions import region_panel, resized
from ltmsearch.reporting.merges.sheet import panel_size, spread_evenly
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.answers import UNREADABLE, Answers
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.setup import StudyContext

EXAMPLES = "examples.json"
"""File in a run directory."""
EACH = 3
"""Images with a changed answer, and without, at most."""
SIDE, LAYERS = 144, 4
"""Of a picture: pixels of its longer side; and layers shown of an image, spread evenly over those that merge."""

Number = Annotated[int, Field(ge=0)]


class Picture(BaseModel):
    """An image, or its tokens after a layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, str]
    """Two short lines: the layer, and its tokens."""
    png: str = Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]+$")
    """A data URL."""


class Example(BaseModel):
    """One reported image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Number
    """Its number, from 0, as in `answers.csv`."""
    label: str
    """Its class."""
    plain: str
    """What the plain network answers."""
    merged: str
    """What the merged network answers."""
    pictures: tuple[Picture, ...]
    """The image as the network gets it, then its tokens after some of the layers that merge."""


class Examples(BaseModel):
    """Images of one trial's network, with the final weights: first those with a changed answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    """Version of this format."""
    trial: Number
    digest: str
    """That of the answers that they were drawn from: see `answers_digest`."""
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How many answers of the reported images a network changes."""

    images: int
    lost: int
    """Right in the plain network only."""
    won: int
    """Right in the merged network only."""
    other: int
    """Wrong in both, but another class."""

    @property
    def changed(self) -> int:
        return self.lost + self.won + self.other


def merged_trial(findings: Findings) -> TrialRecord | None:
    """The network to look at: the recommended one if it merges; else the best of the front that does, searched ones
    first; else that of the verdict."""
    verdict = findings.verdict
    wanted = [] if verdict is None or verdict.recommendation is None else [verdict.recommendation.trial]
    measure = findings.axis.measure
    wanted += sorted(findings.front, key=lambda r: (r.kind == "baseline", r.rescored(measure) or 0.0, r.trial))
    if verdict is not None and (compared := verdict.comparison) is not None:
        wanted += [compared.searched, compared.baseline]
    return next((record for record in wanted if record.schedule.merging_layers), None)


def answers_digest(answers: Answers, trial: int) -> str:
    """SHA-256 of what a trial's network and the plain one answer."""
    return hashlib.sha256(np.stack([answers.labels, answers.plain, answers.trials[trial]]).tobytes()).hexdigest()


def changes_of(answers: Answers, trial: int) -> Changes:
    """Count the answers that a trial's network changes."""
    lost, won, other = (len(found) for found in _changed(answers, trial))
    return Changes(images=len(answers.labels), lost=lost, won=won, other=other)


def choose_images(answers: Answers, trial: int) -> list[int]:
    """Numbers of the images to show, at most `EACH` with a changed answer and then as many without.

    Changed ones: of each way to change in turn, so that losses and gains are both seen. Unchanged ones: of different
    classes as far as there are.
    """
    changed = [i for each in zip_longest(*_changed(answers, trial)) for i in each if i is not None][:EACH]
    same = np.flatnonzero(answers.trials[trial] == answers.plain)
    first = [int(same[np.flatnonzero(answers.labels[same] == label)[0]]) for label in np.unique(answers.labels[same])]
    unchanged = list(dict.fromkeys([*first, *same.tolist()]))[:EACH]
    return changed + unchanged


def _changed(answers: Answers, trial: int) -> tuple[list[int], list[int], list[int]]:
    """Numbers of the images that are lost, won, and changed from one wrong class to another."""
    merged, plain, labels = answers.trials[trial], answers.plain, answers.labels
    was, now = plain == labels, merged == labels
    lost, won, other = was & ~now, ~was & now, ~was & ~now & (merged != plain)
    return np.flatnonzero(lost).tolist(), np.flatnonzero(won).tolist(), np.flatnonzero(other).tolist()


def draw_examples(context: StudyContext, findings: Findings, answers: Answers | None) -> Examples | None:
    """Draw the examples with the supernet's present weights; None where no network of the study merges."""
    record = merged_trial(findings)
    if record is None or answers is None or record.trial not in answers.trials:
        return None
    evaluator, numbers = context.evaluator, choose_images(answers, record.trial)
    images = _images(context, record.schedule, numbers)
    net = evaluator.recalibrated_subnet(record.schedule)
    traces = trace_merges(context.settings.backbone, net, images)
    config = input_config(context.settings.backbone, context.settings.images)
    pixels = [in_colour(each) for each in pixels_seen(images.numpy(), mean=config["mean"], std=config["std"])]
    names = evaluator.data.class_names
    return Examples(
        trial=record.trial,
        digest=answers_digest(answers, record.trial),
        examples=tuple(
            Example(
                image=number,
                label=names[answers.labels[number]],
                plain=names[answers.plain[number]],
                merged=names[answers.trials[record.trial][number]],
                pictures=tuple(_pictures(seen, trace)),
            )
            for number, seen, trace in zip(numbers, pixels, traces, strict=True)
        ),
    )


def _images(context: StudyContext, schedule: MergeSchedule, numbers: Sequence[int]) -> torch.Tensor:
    """(n, channels, side, side) reported images by number, normalised, at the image size of scoring."""
    found: dict[int, torch.Tensor] = {}
    start = 0
    evaluator = context.evaluator
    for batch, _ in evaluator.sized(evaluator.held_out("report"), schedule):
        inside = [number for number in numbers if start <= number < start + len(batch)]
        found |= {number: batch[number - start].clone() for number in inside}  # not the whole batch
        start += len(batch)
        if len(found) == len(numbers):
            break
    if len(found) < len(numbers):
        raise InputError(UNREADABLE)
    return torch.stack([found[number] for number in numbers])


def _pictures(image: np.ndarray, trace: Sequence[LayerMerges]) -> Iterator[Picture]:
    panel, size = panel_size(image, trace, SIDE), f"{image.shape[1]} x {image.shape[0]} px"
    yield Picture(words=("image", size), png=data_url(resized(image, panel), few_colours=True))
    for layer in (trace[place] for place in spread_evenly(len(trace), LAYERS)):
        windows = " a window" if layer.windows > 1 else ""
        words = layer.layer, f"{layer.before} to {layer.after} tokens{windows}"
        yield Picture(words=words, png=data_url(region_panel(image, layer, panel), few_colours=True))


def write_examples(examples: Examples | None, path: Path) -> None:
    """Write the file atomically; None: remove that of an earlier call."""
    if examples is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, examples.model_dump_json() + "\n")


def read_examples(path: Path) -> Examples | None:
    """Read the file; None if there is none.

    Raises:
        InputError: If it is damaged or of another version.
    """
    try:
        return Examples.model_validate(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError):
        raise InputError(
            f"{path} is damaged or of another version; delete it to show results without pictures, and repeat "
            "ltmsearch run to draw it again"
        ) from None
