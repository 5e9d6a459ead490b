"""The linear probe of a training: a new classifier is fitted before the first epoch, by one process for all."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.recipe import Recipe
from ltmsearch.data.loading import ImageData
from ltmsearch.engine.distributed import Ranks
from ltmsearch.engine.evaluation import Batches, score
from ltmsearch.engine.linear_probe import BATCH, fit_classifiers, probe_images
from ltmsearch.engine.probe_record import ProbeRecord
from ltmsearch.engine.runtime import Runtime
from ltmsearch.errors import InputError
from ltmsearch.models import create_backbone
from ltmsearch.training.options import TrainingOptions


def fit_new_classifiers(
    nets: Sequence[nn.Module],
    classifiers: Sequence[str],
    recipe: Recipe,
    options: TrainingOptions,
    data: ImageData,
    runtime: Runtime,
    ranks: Ranks,
    callbacks: Callbacks,
) -> ProbeRecord | None:
    """Fit classifiers to the features of the unmerged network with the weights of the first net, for all processes.

    Args:
        nets: The network to train, and its average if there is one; both receive the fitted classifiers.
        classifiers: timm paths of the classifiers.

    Returns:
        The record of the probe on the main process, None on others.

    Raises:
        InputError: As `fit_classifiers`.
    """
    record = None
    if ranks.is_main:
        plain, record = _fit(nets[0], classifiers, recipe, options, data, runtime, callbacks)
        callbacks.note(str(record))
        with torch.no_grad():
            for wanted, fitted in zip(_tensors(nets[0], classifiers), _tensors(plain, classifiers), strict=True):
                wanted.copy_(fitted)
    with torch.no_grad():
        for first, *others in zip(*(_tensors(net, classifiers) for net in nets), strict=True):
            ranks.broadcast_(first)
            for other in others:
                other.copy_(first)
    return record


def _fit(
    net: nn.Module,
    classifiers: Sequence[str],
    recipe: Recipe,
    options: TrainingOptions,
    data: ImageData,
    runtime: Runtime,
    callbacks: Callbacks,
) -> tuple[nn.Module, ProbeRecord]:
    """The unmerged network with fitted classifiers, and the record with its score."""
    if options.init is None:
        raise InputError("a classifier can be fitted to the features of trained weights only: use --init")
    plain = create_backbone(recipe.backbone, img_size=recipe.img_size, **recipe.network)
    weights = net.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})  # not the file's: it may lack registers
    runtime.prepare(plain)
    images = probe_images(data, seed=recipe.seed)

    def watch(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        callbacks.phase("fitting the classifier", len(images))
        done = 0
        for batch in batches:
            yield batch
            callbacks.advance(done := done + len(batch[1]))

    probe = fit_classifiers(plain, classifiers, data, runtime, images=images, watch=watch)
    return plain, probe.record(recipe.img_size, score(plain, data.validation_batches(batch_size=BATCH), runtime))


def _tensors(net: nn.Module, classifiers: Sequence[str]) -> list[Tensor]:
    return list(chain.from_iterable((p.data for p in net.get_submodule(name).parameters()) for name in classifiers))
