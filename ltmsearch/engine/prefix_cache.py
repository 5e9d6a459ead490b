"""Cache of the outputs before the first layer, which are the same under every schedule."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltmsearch.models import prefix_modules
from ltmsearch.models.supernet import Supernet

LIMIT = 1 << 30
"""Largest size of the cache, in bytes; batches beyond it are computed every time."""


class WeightsWatch:
    """Tells whether weights changed since the last time, by their values."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def changed(self, now: Sequence[Tensor]) -> bool:
        """Compare with the tensors of the last call, also in number; the first call finds a change if there are any."""
        if len(now) == len(self._seen) and all(map(torch.equal, now, self._seen)):
            return False
        self._seen = [tensor.detach().clone() for tensor in now]
        return True


class PrefixCache:
    """Outputs of the modules before a supernet's first layer for batches that are used repeatedly.

    Trials do not train these modules (`Supernet.frozen_prefix`), and BatchNorm statistics recomputed from the same
    images are the same. In a MobileViT this is half of a forward pass. Outputs are equal to the bit. The cache is
    cleared when the weights of these modules change.
    """

    def __init__(self, supernet: Supernet, limit: int = LIMIT) -> None:
        self.modules = [supernet.model.get_submodule(path) for path in prefix_modules(supernet.model, supernet.layers)]
        self.norms = [m for module in self.modules for m in module.modules() if isinstance(m, _BatchNorm)]
        self.bytes_left = self.limit = limit
        self._weights = WeightsWatch()
        self._outputs: dict[Hashable, list[Tensor]] = {}
        self._statistics: dict[Hashable, list[dict[str, Tensor]]] = {}

    @contextmanager
    def replay(self, *key: Hashable) -> Iterator[None]:
        """Reuse the outputs of the n-th batch, and the BatchNorm statistics, of the last block with the same key.

        Equal keys mean equal batches in the same order, mode and number format.
        """
        self._clear_if_trained()
        cached = self._outputs.setdefault(key, [])
        batch = [0]
        try:
            for module in self.modules:
                module.forward = self._cached_forward(module, cached, batch)
            yield
        except BaseException:
            if key not in self._statistics:  # without statistics, outputs are useless
                self.bytes_left += sum(output.nbytes for output in self._outputs.pop(key))
            raise
        finally:
            for module in self.modules:
                del module.forward
        before = self._statistics.get(key)
        if before is None:
            self._statistics[key] = [{n: b.clone() for n, b in norm.named_buffers()} for norm in self.norms]
            return
        with torch.no_grad():
            for norm, statistics in zip(self.norms, before, strict=True):
                for name, buffer in norm.named_buffers():
                    buffer.copy_(statistics[name])

    def _cached_forward(self, module: nn.Module, cached: list[Tensor], batch: list[int]) -> Callable[[Any], Any]:
        compute, last = module.forward, module is self.modules[-1]

        def forward(x: Any) -> Any:
            is_cached = batch[0] < len(cached)
            output = (cached[batch[0]] if last else x) if is_cached else compute(x)
            if last:
                if not is_cached and batch[0] == len(cached) and output.nbytes <= self.bytes_left:
                    cached.append(output)
                    self.bytes_left -= output.nbytes
                batch[0] += 1
            return output

        return forward

    def _clear_if_trained(self) -> None:
        if self._weights.changed([parameter for module in self.modules for parameter in module.parameters()]):
            self._outputs.clear()
            self._statistics.clear()
            self.bytes_left = self.limit
