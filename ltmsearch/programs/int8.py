"""Dynamic int8 quantisation of an ONNX file by onnxruntime."""

from pathlib import Path
from typing import Any

from ltmsearch.errors import ExportError
from ltmsearch.programs.tracing import one_line_errors, silence

PRODUCTS = ("MatMul", "Gemm")
"""ONNX operators that are quantised where one factor is a weight."""
QUANTIZED = "MatMulInteger"
OPERATORS = ".merging."
"""Part of the names of parameters of merging operators."""


def quantize_onnx(source: Path, path: Path) -> int:
    """Write a copy of an ONNX file whose products of tokens with weights compute in int8.

    Weights are quantised by output channel, to 7 bits, since products of 8 bits saturate on processors without VNNI;
    activations to 8 bits, with a scale for each batch that is measured as it runs: that needs no calibration images,
    and stays nearer to a merged network than static scales. Convolutions, the products of attention and parameters that
    decide what merges stay in float32.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

    Args:
        path: File to create.

    Returns:
        The number of products that are quantised.

    Raises:
        ExportError: If there is none, or onnxruntime cannot quantise the file.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silence(), one_line_errors("quantised"):
        model = onnx.load(source)  # from its path, onnxruntime would write a file beside it
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=[node.name for node in model.graph.node if _decides(node)],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        nodes = onnx.load(path).graph.node
    number = sum(node.op_type == QUANTIZED for node in nodes)
    if not number:
        raise ExportError("--int8 quantises products of tokens with weights, but this network has none")
    return number


def _decides(node: Any) -> bool:
    """Whether a node has a parameter of a merging operator."""
    return any(OPERATORS in name for name in node.input)
