"""Export of a network as a `torch.export` program, a `.pt2` file that needs only torch."""

from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from ltmsearch.io.files import write_atomic
from ltmsearch.programs.tracing import inference_copy, one_line_errors, program_nodes, silence, trace
from ltmsearch.programs.verify import ExportedFile, check_program, describe_check


def export_program(model: nn.Module, path: Path, *, img_size: int) -> ExportedFile:
    """Write a network as a `torch.export` program, and check the program that `torch.export.load` reads back.

    Args:
        model: (B, channels, img_size, img_size) images to (B, classes) logits; not modified.
        path: File to create or replace, usually `.pt2`.
        img_size: Side of the images, in pixels.

    Raises:
        ExportError: If the export fails or the program disagrees with the network. No file is left.
    """
    net = inference_copy(model)
    program = trace(net, img_size)
    differences: list[float] = []

    def write(draft: Path) -> None:
        with silence(), one_line_errors("written as a program"):
            torch.export.save(program, draft)
            loaded = torch.export.load(draft).module()
        differences.append(check_program(net, loaded, img_size=img_size, runtime="the program"))

    write_atomic(path, write)
    return ExportedFile(
        file=path,
        bytes=path.stat().st_size,
        check=describe_check(f"torch {version('torch')}", differences[0]),
        difference=differences[0],
        nodes=sum(node.op == "call_function" for node in program_nodes(program)),
    )
