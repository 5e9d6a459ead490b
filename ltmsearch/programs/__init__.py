"""A net as a program that runs without ltmsearch: an ONNX file, or a program of `torch.export`.

Both take float32 images (B, channels, height, width) of one stated size in batches of any number, and give (B, classes)
logits. Each file is opened again and compared with the net before it gets its name. None holds a scatter with
reduction, which other runtimes lack or run in no fixed order: merges by index are written as products with a one-hot
matrix (see `merging.assignment`).
"""

from ltmsearch.programs.onnx import export_onnx, open_onnx, require_onnx
from ltmsearch.programs.torch_export import export_program
from ltmsearch.programs.verify import ProgramCheck

__all__ = ["ProgramCheck", "export_onnx", "export_program", "open_onnx", "require_onnx"]
