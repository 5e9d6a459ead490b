"""Export of a network as one ONNX file. The ONNX libraries are optional and slow, so they are imported on first use."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ltmsearch.errors import InputError
from ltmsearch.programs.tracing import inference_copy, one_line_errors, refuse_reductions, silence, trace
from ltmsearch.programs.verify import ExportedFile, Program, write_checked

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
IMAGES, LOGITS = "images", "logits"
"""Names of the input and the output."""


def require_onnx(what: str = "--onnx") -> None:
    """Raise an `InputError` with the install command if a library is missing that `what` needs."""
    if not all(find_spec(library) for library in LIBRARIES):
        raise InputError(f"{what} needs onnx, onnxscript and onnxruntime: pip install 'ltmsearch[onnx]'")


def export_onnx(model: nn.Module, path: Path, *, img_size: int) -> ExportedFile:
    """Write a network as one ONNX file, and check it in onnxruntime on the CPU.

    The input is named `images`, the output `logits`, and the first axis of both `batch`.

    Args:
        model: (B, channels, img_size, img_size) images to (B, classes) logits; not modified.
        path: File to create or replace.
        img_size: Side of the images, in pixels.

    Raises:
        InputError: If a library is missing.
        ExportError: If the export fails or onnxruntime disagrees with the network. No file is left.
    """
    require_onnx()
    net = inference_copy(model)
    with silence(), one_line_errors("written as ONNX"):
        onnx_program = translate(trace(net, img_size))

    def save(draft: Path) -> Program:
        with silence(), one_line_errors("written as ONNX"):
            onnx_program.save(draft, external_data=False)
        return open_onnx(draft, threads=torch.get_num_threads())

    opset, nodes = onnx_program.model.opset_imports[""], len(onnx_program.model.graph)
    return write_checked(path, net, save, img_size=img_size, runtime="onnxruntime", opset=opset, nodes=nodes)


def translate(program: ExportedProgram) -> Any:
    """Translate a traced program to a `torch.onnx.ONNXProgram`, without the exporter's notes on every node."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    translated = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=[IMAGES],
        output_names=[LOGITS],
        dynamic_shapes=({0: "batch"},),
        custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
    )
    assert translated is not None
    refuse_reductions(onnx_reductions(translated.model.graph))
    ClearMetadataAndDocStringPass()(translated.model)  # file names of this machine, and a fifth of a small file
    return translated


def _stable_sort(self: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """Translate `aten::sort.stable`, which the exporter does not know: ONNX's TopK keeps the order of ties."""
    from onnxscript import opset18 as op

    # The number of tokens, a constant: onnxruntime's tools for quantisation cannot infer it from the shape.
    return op.TopK(self, op.Constant(value_ints=[self.shape[dim]]), axis=dim, largest=int(descending), sorted=1)


def onnx_reductions(graph: Any) -> list[str]:
    """List the operators of an `onnx_ir.Graph`, including nested graphs, that reduce while they scatter."""
    from onnx_ir.traversal import RecursiveGraphIterator

    found = set()
    for node in RecursiveGraphIterator(graph):
        reduction = node.attributes.get_string("reduction", "none")
        if node.op_type.startswith("Scatter") and reduction != "none":
            found.add(f"{node.op_type} with reduction {reduction}")
    return sorted(found)


def open_onnx(path: Path, *, threads: int) -> Program:
    """Open an ONNX file in onnxruntime on the CPU; raise an `ExportError` if it refuses the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    with one_line_errors("opened by onnxruntime"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([LOGITS], {IMAGES: images.numpy()})[0])
