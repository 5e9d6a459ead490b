"""Modules of a network that run strictly one after the other, found by the calls of one forward pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from ltmsearch.models.adapter import blank_image, run_once
from ltmsearch.schedules.grid import Grid


def prefix_modules(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Paths of the modules that run strictly one after the other before the first layer, in the order of execution.

    The first takes the images, each of the others only the output of the one before. Modules around the first layer
    are entered as long as they run their children in sequence.
    """
    candidates, level = [], ""
    for name in layers[0].split("."):
        parent = model.get_submodule(level)
        if level and not isinstance(parent, nn.Sequential) and len(list(parent.children())) > 1:
            break
        for child, _ in parent.named_children():
            if child == name:
                break
            candidates.append(f"{level}.{child}".removeprefix("."))
        level = f"{level}.{name}".removeprefix(".")
    image = blank_image(model, _accepted_size(model))
    return _in_sequence(_recorded_calls(model, candidates, image), image)


def layer_modules(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Paths of the first layer and of the modules that run strictly one after the other from there, layers or not.

    Each takes the output of the one before, and nothing else that depends on the images or on the schedule.
    """
    around = {layer.rpartition(".")[0] for layer in layers}
    around |= {parent.rpartition(".")[0] for parent in around}
    children = (f"{path}.{name}".removeprefix(".") for path in around for name, _ in _children(model, path))
    calls = _recorded_calls(
        model, [path for path in children if path not in around], blank_image(model, _accepted_size(model))
    )
    first = next(place for place, call in enumerate(calls) if call[0] == layers[0])
    return _in_sequence(calls[first:], calls[first][1][0])


def _children(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    return model.get_submodule(path).named_children()


_Call = tuple[str, tuple[Any, ...], Any]
"""Path of a module, its arguments, its output."""


def _recorded_calls(model: nn.Module, paths: Iterable[str], image: Tensor) -> list[_Call]:
    """The calls of some modules in the order in which they end."""
    calls: list[_Call] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, args, output, path=path: calls.append((path, args, output))
        )
        for path in paths
    ]
    run_once(model, image, hooks)
    return calls


def _in_sequence(calls: Iterable[_Call], given: Tensor) -> tuple[str, ...]:
    """Paths of the first modules, of which each takes exactly what the one before returned."""
    chain, previous = [], given
    for path, args, output in calls:
        if len(args) != 1 or args[0] is not previous or not isinstance(output, Tensor):
            break
        chain.append(path)
        previous = output
    return tuple(chain)


def _accepted_size(model: nn.Module) -> Grid:
    size = cast(Mapping[str, Any], model.pretrained_cfg)["input_size"][1:]
    return cast(Grid, getattr(getattr(model, "patch_embed", None), "img_size", None) or tuple(size))
