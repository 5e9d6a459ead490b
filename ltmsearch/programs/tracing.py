"""A net traced by `torch.export`, and what a traced program must not hold."""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from ltmsearch.errors import ExportError, LtmsearchError
from ltmsearch.programs.verify import image_shape

REDUCTIONS = ("scatter_add", "scatter_reduce", "scatter.reduce", "scatter.value_reduce", "index_add", "index_reduce")
"""Parts of the names of torch's operations that add up by index; besides, an `index_put` that accumulates."""


def frozen(model: nn.Module) -> nn.Module:
    """A copy for inference on the CPU.

    Without gradients: attention lays out its result in another way where one is wanted, and a program that was traced
    for one way fails in the other.
    """
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def trace(net: nn.Module, img_size: int) -> ExportedProgram:
    """The program of a frozen net for batches of any size.

    Raises:
        ExportError: If it cannot be traced, or holds a scatter with reduction.
    """
    images = torch.zeros(2, *image_shape(net, img_size))  # a batch of 1 would be taken for a constant
    with quiet(), told_in_one_line("traced"):
        program = torch.export.export(net, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for node in nodes(program):
        node.meta.pop("stack_trace", None)  # file names of this machine
    refuse(reductions_by_index(program))
    return program


def nodes(program: ExportedProgram) -> Iterator[Node]:
    """All nodes, also of the graphs inside, such as what runs without autocast."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def reductions_by_index(program: ExportedProgram) -> list[str]:
    """The operations of a program that add up by index, by name."""
    return sorted({str(node.target) for node in nodes(program) if _adds_by_index(node)})


def _adds_by_index(node: Node) -> bool:
    name = str(node.target)
    if "index_put" in name:
        return bool(node.kwargs.get("accumulate", node.args[3] if len(node.args) > 3 else False))
    return any(part in name for part in REDUCTIONS)


def refuse(found: Sequence[str]) -> None:
    """Raise an `ExportError` if a program was found to hold scatters with reduction."""
    if found:
        raise ExportError(f"a program must not scatter with reduction, but this net does: {', '.join(found)}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the exporters print and warn of: versions, constants they fold, operations they do not know."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


@contextmanager
def told_in_one_line(what: str) -> Iterator[None]:
    """Turn whatever the libraries raise into an `ExportError` of one line."""
    try:
        yield
    except LtmsearchError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ExportError(f"the net cannot be {what}: {type(error).__name__}: {lines[0] if lines else ''}") from error
