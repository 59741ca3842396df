"""Arithmetic of the mechanisms: tensors in, tensors out. Imports torch alone.

Each op is a folder with one readable ``reference.py`` (float64-capable, sequential) that defines it, and further
executions (``torch.py``, ``rust.py``, ``triton.py``) that equal it in output, gradients and final state.
"""
