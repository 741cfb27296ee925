"""Triton's interpreter with bfloat16 repaired: it multiplies bfloat16 as the integers that hold it, and truncates to it.

It is made faster, too. Import it, with TRITON_INTERPRET=1, before any kernel: Triton reads how to run when it is imported
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_cast, _patch = interpreter.InterpreterBuilder.cast_impl, interpreter._patch_lang


def _to_float(handle: interpreter.TensorHandle) -> np.ndarray:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data.astype(np.float32)
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    return interpreter.TensorHandle(np.matmul(_to_float(a), _to_float(b)) + d.data, d.dtype.scalar)


def _cast_impl(self, src, dst_type):
    if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
        return _cast(self, src, dst_type)
    bits = np.ascontiguousarray(src.data, dtype=np.float32).view(np.uint32)
    return interpreter.TensorHandle(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16), tl.bfloat16)


_patched = set[tuple[bool, bool]]()


def _patch_once(function: Callable[..., Any]) -> interpreter._LangPatchScope:
    """Triton's language stays interpreted in this process. Triton would go through it again at every call of a function."""
    seen = function.__globals__.values()
    visible = any(each is tl for each in seen), any(each is tl.core for each in seen)
    if visible not in _patched:
        _patched.add(visible)
        _patch(function)
    return interpreter._LangPatchScope()


interpreter.InterpreterBuilder.create_dot = _create_dot
interpreter.InterpreterBuilder.cast_impl = _cast_impl
interpreter._patch_lang = _patch_once
# Every sum and product of whole numbers would be computed again in 64 bits; the sizes here are far from 32.
interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
