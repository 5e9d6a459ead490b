"""Export of a network as a `torch.export` program, and the operations that a program must not contain."""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from ltmsearch.errors import ExportError, LtmsearchError
from ltmsearch.programs.verify import ExportedFile, Program, image_shape, write_checked

REDUCTIONS = ("scatter_add", "scatter_reduce", "scatter.reduce", "scatter.value_reduce", "index_add", "index_reduce")
"""Parts of the names of torch operations that add by index, besides an `index_put` that accumulates."""


def export_program(model: nn.Module, path: Path, *, img_size: int) -> ExportedFile:
    """Write a network as a `torch.export` program, and check the program that `torch.export.load` reads back.

    Arguments and errors are those of `export_onnx`; the path usually ends in `.pt2`.
    """
    net = inference_copy(model)
    program = trace(net, img_size)

    def save(draft: Path) -> Program:
        with silence(), one_line_errors("written as a program"):
            torch.export.save(program, draft)
            return torch.export.load(draft).module()

    nodes = sum(node.op == "call_function" for node in program_nodes(program))
    return write_checked(path, net, save, img_size=img_size, runtime="torch", nodes=nodes)


def inference_copy(model: nn.Module) -> nn.Module:
    """Copy a network for inference on the CPU.

    Parameters of the copy need no gradients: attention uses another memory layout where one is needed, and a program
    that was traced with one layout fails with the other.
    """
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def trace(net: nn.Module, img_size: int) -> ExportedProgram:
    """Trace an `inference_copy` for batches of any size.

    Raises:
        ExportError: If tracing fails, or the program contains a scatter with reduction.
    """
    images = torch.zeros(2, *image_shape(net, img_size))  # torch.export treats a batch size of 1 as a constant
    with silence(), one_line_errors("traced"):
        program = torch.export.export(net, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for node in program_nodes(program):
        node.meta.pop("stack_trace", None)  # file names of this machine
    refuse_reductions(index_reductions(program))
    return program


def program_nodes(program: ExportedProgram) -> Iterator[Node]:
    """Iterate over all nodes, including those of nested graphs, such as regions without autocast."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def index_reductions(program: ExportedProgram) -> list[str]:
    """List the names of a program's operations that add by index."""
    return sorted({str(node.target) for node in program_nodes(program) if _adds_by_index(node)})


def _adds_by_index(node: Node) -> bool:
    name = str(node.target)
    if "index_put" in name:
        return bool(node.kwargs.get("accumulate", node.args[3] if len(node.args) > 3 else False))
    return any(part in name for part in REDUCTIONS)


def refuse_reductions(found: Sequence[str]) -> None:
    """Raise an `ExportError` if a program contains scatters with reduction."""
    if found:
        raise ExportError(f"a program must not scatter with reduction, but this network does: {', '.join(found)}")


@contextmanager
def silence() -> Iterator[None]:
    """Suppress warnings and log output of the exporters."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(previous)


@contextmanager
def one_line_errors(action: str) -> Iterator[None]:
    """Convert exceptions of the exporters to an `ExportError` of one line."""
    try:
        yield
    except LtmsearchError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ExportError(f"the network cannot be {action}: {type(error).__name__}: {reason}") from error
