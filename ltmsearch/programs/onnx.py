"""A net as one ONNX file, run in onnxruntime. Its libraries are heavy, and optional: they wait until they are used."""

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ltmsearch.errors import InputError
from ltmsearch.io.files import write_atomic
from ltmsearch.programs.tracing import frozen, quiet, refuse, told_in_one_line, trace
from ltmsearch.programs.verify import Agreement, ProgramCheck, compare

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
IMAGES, LOGITS = "images", "logits"
"""Names of what goes in and what comes out."""


def require_onnx() -> None:
    """Refuse to begin where a library is missing.

    Raises:
        InputError: With what to install.
    """
    if not all(find_spec(library) for library in LIBRARIES):
        raise InputError("--onnx needs onnx, onnxscript and onnxruntime: pip install 'ltmsearch[onnx]'")


def export_onnx(model: nn.Module, path: Path, *, img_size: int) -> ProgramCheck:
    """Write a net as one ONNX file and run it in onnxruntime on the CPU.

    Input `images`, output `logits`, the first axis of both named `batch`.

    Args:
        model: (B, channels, img_size, img_size) images to (B, classes) logits; left in its mode, on its device.
        path: The file to create or replace.
        img_size: Side of the images, in pixels.

    Raises:
        InputError: If a library is missing.
        ExportError: If the net cannot be exported, or onnxruntime disagrees with it. Nothing is left.
    """
    require_onnx()
    net = frozen(model)
    program = trace(net, img_size)
    seen: list[tuple[int, int, Agreement]] = []

    def write(temporary: Path) -> None:
        with quiet(), told_in_one_line("written as ONNX"):
            translate(program).save(temporary, external_data=False)
        opset, nodes = _inspect(temporary)
        run = open_onnx(temporary, threads=torch.get_num_threads())
        seen.append((opset, nodes, compare(net, run, img_size=img_size, runtime="onnxruntime")))

    write_atomic(path, write)
    ((opset, nodes, agreement),) = seen
    return ProgramCheck(
        path=path,
        bytes=path.stat().st_size,
        runtime=f"onnxruntime {version('onnxruntime')}",
        opset=opset,
        nodes=nodes,
        agreement=agreement,
    )


def translate(program: ExportedProgram) -> Any:
    """The program as a `torch.onnx.ONNXProgram`, without what the exporter notes on every node."""
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
    ClearMetadataAndDocStringPass()(translated.model)  # file names of this machine, and a fifth of a small file
    return translated


def _stable_sort(self: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """`aten::sort.stable`, for which the exporter has no translation: ONNX's TopK leaves ties in their order."""
    from onnxscript import opset18 as op

    size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def _inspect(path: Path) -> tuple[int, int]:
    """Version of the operators, and their number."""
    import onnx

    model = onnx.load(path)
    refuse(reductions_in_onnx(model.graph))
    return next(opset.version for opset in model.opset_import if not opset.domain), len(model.graph.node)


def reductions_in_onnx(graph: Any) -> list[str]:
    """The operators of an `onnx.GraphProto`, and of the graphs inside it, that reduce while they scatter."""
    found = set()
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type.startswith("Scatter") and attribute.name == "reduction" and attribute.s != b"none":
                found.add(f"{node.op_type} with reduction {attribute.s.decode()}")
            for inner in (attribute.g, *attribute.graphs):
                found.update(reductions_in_onnx(inner))
    return sorted(found)


def open_onnx(path: Path, *, threads: int) -> Callable[[Tensor], Tensor]:
    """An ONNX file as a function of a batch of images, run by onnxruntime on so many threads of the CPU.

    Raises:
        ExportError: If onnxruntime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    with told_in_one_line("opened by onnxruntime"):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([LOGITS], {IMAGES: images.numpy()})[0])
