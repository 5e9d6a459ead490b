"""What lies ahead of the first layer is the same under every schedule: images that come again need not pass it."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltmsearch.models import prefix_modules
from ltmsearch.models.supernet import Supernet

LIMIT = 1 << 30
"""Bytes that are remembered at most; batches beyond pass through as usual."""


class PrefixCache:
    """The modules ahead of a supernet's first layer, with their outputs for batches that pass again and again.

    Trials leave their weights alone (`Supernet.frozen_prefix`), and BatchNorm statistics that are taken anew from the
    same images are the same. In a MobileViT this is half of a forward pass. Outputs are those of the same modules for
    the same batches, to the bit.

    Args:
        supernet: Its weights may change: what was remembered is dropped when those of the beginning do.
        limit: Bytes to remember at most.
    """

    def __init__(self, supernet: Supernet, limit: int = LIMIT) -> None:
        self.modules = [supernet.model.get_submodule(path) for path in prefix_modules(supernet.model, supernet.layers)]
        self.norms = [m for module in self.modules for m in module.modules() if isinstance(m, _BatchNorm)]
        self.left = self.limit = limit
        self._weights: list[Tensor] = []
        self._outputs: dict[Hashable, list[Tensor]] = {}
        self._statistics: dict[Hashable, list[dict[str, Tensor]]] = {}

    @contextmanager
    def replay(self, *key: Hashable) -> Iterator[None]:
        """Take the outputs for the n-th batch inside the `with` block from the last time, as far as they are known.

        BatchNorm statistics of the beginning end as they did the last time.

        Args:
            key: Tells apart what passes: equal keys stand for equal batches in the same order, mode and number format.
        """
        self._forget_if_trained()
        known = self._outputs.setdefault(key, [])
        batch = [0]
        try:
            for module in self.modules:
                module.forward = self._answering(module, known, batch)
            yield
        except BaseException:
            if key not in self._statistics:  # without them, outputs are of no use
                self.left += sum(output.nbytes for output in self._outputs.pop(key))
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

    def _answering(self, module: nn.Module, known: list[Tensor], batch: list[int]) -> Callable[[Any], Any]:
        compute, last = module.forward, module is self.modules[-1]

        def forward(entering: Any) -> Any:
            is_known = batch[0] < len(known)
            leaving = (known[batch[0]] if last else entering) if is_known else compute(entering)
            if last:
                if not is_known and batch[0] == len(known) and leaving.nbytes <= self.left:
                    known.append(leaving)
                    self.left -= leaving.nbytes
                batch[0] += 1
            return leaving

        return forward

    def _forget_if_trained(self) -> None:
        now = [parameter for module in self.modules for parameter in module.parameters()]
        if len(now) == len(self._weights) and all(map(torch.equal, now, self._weights)):
            return
        self._weights = [parameter.detach().clone() for parameter in now]
        self._outputs.clear()
        self._statistics.clear()
        self.left = self.limit
