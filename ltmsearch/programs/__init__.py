"""Networks exported as programs that run without ltmsearch: ONNX files and `torch.export` programs.

Both take float32 images (B, channels, height, width) of one fixed size, in batches of any size, and return (B, classes)
logits. Each file is read back and compared with the network before it replaces an older one. No program contains a
scatter with reduction, which other runtimes lack or run in no fixed order: merges by index are written as products with
a one-hot matrix (see `merging.assignment`).
"""

from ltmsearch.programs.int8 import quantize_onnx
from ltmsearch.programs.onnx import export_onnx, open_onnx, require_onnx
from ltmsearch.programs.tracing import export_program
from ltmsearch.programs.verify import ExportedFile

__all__ = ["ExportedFile", "export_onnx", "export_program", "open_onnx", "quantize_onnx", "require_onnx"]
