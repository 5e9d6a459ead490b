"""Cache of the outputs of layers, for schedules that agree up to them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from ltmsearch.engine.evaluation import has_batchnorm
from ltmsearch.engine.prefix_cache import WeightsWatch
from ltmsearch.models import layer_modules
from ltmsearch.models.supernet import Supernet

LIMIT = 1 << 30
"""Largest size of the cache, in bytes; what was used longest ago is dropped."""
Key = tuple[Hashable, ...]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A module of the sequence."""

    module: nn.Module
    layers: tuple[str, ...]
    """Layers up to and including it, which determine its output."""
    is_layer: bool


class LayerCache:
    """Outputs of layers for batches that are used repeatedly: a trie of schedules, by the choices of their layers.

    The screening changes a few layers of a good schedule at a time; of a network that agrees with an earlier one up to
    layer k, only the layers after k are computed. The plain network shares none. Outputs are equal to the bit. The
    cache is cleared when weights change. It is empty for networks whose layers do not run in one sequence, or that have
    BatchNorm, whose statistics are recomputed for each schedule.
    """

    def __init__(self, supernet: Supernet, limit: int = LIMIT) -> None:
        self.supernet, self.limit, self.bytes = supernet, limit, 0
        self.steps = () if has_batchnorm(supernet) else _steps(supernet)
        self._weights = WeightsWatch()
        self._outputs: OrderedDict[Key, tuple[Tensor, int]] = OrderedDict()

    @contextmanager
    def replay(self, *key: Hashable) -> Iterator[None]:
        """Reuse the outputs of the n-th batch under schedules that agree with the active one up to some layer.

        Equal keys mean equal batches in the same order, mode and number format.
        """
        self._clear_if_trained()
        schedule = self.supernet.schedule
        choices = {layer: (schedule.keep_ratio(layer), schedule.form(layer)) for layer in self.supernet.layers}
        # Networks that merge somewhere give their tokens places from the first block on, where they need them.
        merges = bool(schedule.merging_layers)
        prefixes = [(merges, *(choices[layer] for layer in step.layers)) for step in self.steps]
        batch, skipped = [-1], [-1]

        def name(place: int, images: int) -> Key:
            return (*key, batch[0], images, place, prefixes[place])

        def computed(place: int, step: _Step, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def forward(x: Tensor, **options: Any) -> Tensor:
                images = len(x)
                if place == 0:
                    batch[0] += 1
                    known = (i for i in reversed(range(len(self.steps))) if name(i, images) in self._outputs)
                    skipped[0] = next(known, -1)
                if place < skipped[0]:
                    return x
                if place == skipped[0]:
                    self._outputs.move_to_end(name(place, images))
                    return self._outputs[name(place, images)][0]
                output = compute(x, **options)
                if step.is_layer:
                    self._store(name(place, images), output)
                return output

            return forward

        try:
            for place, step in enumerate(self.steps):
                step.module.forward = computed(place, step, step.module.forward)
            yield
        finally:
            for step in self.steps:
                del step.module.forward

    def _store(self, key: Key, output: Tensor) -> None:
        size = _size(output)
        self._outputs[key] = output, size
        self.bytes += size
        while self.bytes > self.limit:
            _, (_, freed) = self._outputs.popitem(last=False)
            self.bytes -= freed

    def _clear_if_trained(self) -> None:
        if self.steps and self._weights.changed(list(self.supernet.parameters())):
            self._outputs.clear()
            self.bytes = 0


def _steps(supernet: Supernet) -> tuple[_Step, ...]:
    """The sequence of modules from the first layer on, up to the last layer in it; empty if there is one layer only."""
    paths = layer_modules(supernet.model, supernet.layers)
    inside = [path for path in paths if path in supernet.layers]
    if len(inside) < 2 or list(supernet.layers[: len(inside)]) != inside:
        return ()
    paths = paths[: paths.index(inside[-1]) + 1]
    before = [tuple(path for path in paths[: place + 1] if path in inside) for place in range(len(paths))]
    return tuple(
        _Step(module=supernet.model.get_submodule(path), layers=layers, is_layer=path in inside)
        for path, layers in zip(paths, before, strict=True)
    )


def _size(value: Any) -> int:
    """Bytes of a tensor, with what travels with it as an attribute."""
    if isinstance(value, Tensor):
        return value.nbytes + sum(map(_size, vars(value).values()))
    if is_dataclass(value):
        return sum(_size(getattr(value, each.name)) for each in fields(value))
    return sum(map(_size, value)) if isinstance(value, tuple | list) else 0
