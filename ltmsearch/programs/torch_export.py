"""A net as a program of `torch.export`: a `.pt2` file that torch alone opens."""

from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from ltmsearch.io.files import write_atomic
from ltmsearch.programs.tracing import frozen, nodes, quiet, told_in_one_line, trace
from ltmsearch.programs.verify import Agreement, ProgramCheck, compare


def export_program(model: nn.Module, path: Path, *, img_size: int) -> ProgramCheck:
    """Write a net as a program of `torch.export` and run it as `torch.export.load` opens it.

    Args:
        model: (B, channels, img_size, img_size) images to (B, classes) logits; left in its mode, on its device.
        path: The file to create or replace; customary is `.pt2`.
        img_size: Side of the images, in pixels.

    Raises:
        ExportError: If the net cannot be exported, or the program disagrees with it. Nothing is left.
    """
    net = frozen(model)
    program = trace(net, img_size)
    seen: list[Agreement] = []

    def write(temporary: Path) -> None:
        with quiet(), told_in_one_line("written as a program"):
            torch.export.save(program, temporary)
            opened = torch.export.load(temporary).module()
        seen.append(compare(net, opened, img_size=img_size, runtime="the program"))

    write_atomic(path, write)
    return ProgramCheck(
        path=path,
        bytes=path.stat().st_size,
        runtime=f"torch {version('torch')}",
        opset=None,
        nodes=sum(node.op == "call_function" for node in nodes(program)),
        agreement=seen[0],
    )
