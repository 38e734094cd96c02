"""``--encoder ggml``: the bytes of llama.cpp's own encoders, from the libggml that llama-cpp-python carries.

The library is called through ctypes; its functions are declared in ggml.h. On the first use it encodes
two small matrices that ``compiler/ir/blocks`` can encode too: a library whose functions take other
arguments is refused and never writes wrong bytes.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.floats import FloatFormat
from qcompile.compiler.ir.blocks.format import BlockFormat, check_finite
from qcompile.compiler.ir.errors import CalibrationError, MissingPackageError, TargetError
from qcompile.passes.calibration.parallel import each

PACKAGE, EXTRA = "llama-cpp-python", "gguf"
SAFE = 1000.0
"""Scales are a few times the largest value at most: below this, float16 (65,504) holds all of them."""
PART = 1 << 18
"""Elements that one thread encodes at once."""
LARGEST_ERROR = 1e36
"""Above this, sums of ggml's weighted squared errors may overflow; its searches end the process then."""


def ggml_encode(weight: Tensor, format: BlockFormat, importance: Tensor | None) -> Tensor:
    """Return the bytes that llama.cpp's encoder writes for a weight.

    Args:
        weight: float32 ``[rows, columns]``.
        format: Of the blocks. F32, F16 and BF16 are written by our codecs: they have one rounding.
        importance: ``[columns]``, how much each input matters: an imatrix. ggml ignores it for Q8_0.

    Returns:
        uint8 ``[rows, bytes]``, the same for any number of threads.

    Raises:
        CalibrationError: The format's encoder needs an importance.
        MissingPackageError: llama-cpp-python is not installed.
        TargetError: Its libggml is not one that is known.
        ValueError: Values that cannot be stored, or a width that blocks do not fill.
    """
    if isinstance(format, FloatFormat):
        return format.encode(weight)
    largest = _check_values(weight, format, importance)
    data = library().encode(weight, format, importance)
    if largest > SAFE:
        format.check_storable(largest, format.unpack(data))
    return data


def needs_importance(format: BlockFormat) -> bool:
    """Return whether llama.cpp's encoder of a format works only with an importance.

    Raises:
        MissingPackageError: llama-cpp-python is not installed.
        TargetError: Its libggml is not one that is known.
    """
    return not isinstance(format, FloatFormat) and library().needs_importance(format)


@functools.cache
def library() -> Library:
    """Return libggml, once it has shown that it is the one we know.

    Raises:
        MissingPackageError: llama-cpp-python is not installed.
        TargetError: Its libggml is not one that is known.
    """
    found = Library(_load(_file()))
    _check_library(found)
    return found


@dataclass(frozen=True)
class Library:
    """The three functions of ggml.h that are needed.

    Args:
        handle: libggml-base.
    """

    handle: ctypes.CDLL

    def encode(self, weight: Tensor, format: BlockFormat, importance: Tensor | None) -> Tensor:
        """Return what ``ggml_encode`` returns; all is checked but whether there is an importance."""
        if importance is None and self.needs_importance(format):
            raise CalibrationError(
                f"llama.cpp's encoder of {format.name} needs to know how much each input matters: give "
                "--calibrate or --imatrix, or use --encoder qcompile"
            )
        self.handle.ggml_quantize_init(format.type_id)
        rows = weight.float().contiguous()
        factors = None if importance is None else importance.float().contiguous()
        count = max(1, PART // rows.shape[1])
        return torch.cat(each(lambda part: self._part(part, format, factors), rows.split(count)))

    def needs_importance(self, format: BlockFormat) -> bool:
        """Return whether the format's encoder works only with an importance."""
        return bool(self.handle.ggml_quantize_requires_imatrix(format.type_id))

    def _part(self, rows: Tensor, format: BlockFormat, importance: Tensor | None) -> Tensor:
        count, width = rows.shape
        data = torch.empty(count, format.storage_bytes((width,)), dtype=torch.uint8)
        factors = None if importance is None else importance.data_ptr()
        written = self.handle.ggml_quantize_chunk(
            format.type_id, rows.data_ptr(), data.data_ptr(), 0, count, width, factors
        )
        if written != data.numel():
            raise _unknown(f"writes {written} bytes of {format.name} and not {data.numel()}")
        return data


def _check_values(weight: Tensor, format: BlockFormat, importance: Tensor | None) -> Tensor:
    """Return the largest magnitude of a weight that can be encoded."""
    if weight.dim() != 2:
        raise ValueError(f"{format.name} encodes rows [rows, columns], not {list(weight.shape)}")
    format.check_width(weight.shape[1])
    check_finite(weight, "values")
    largest = torch.zeros(())
    if weight.numel():
        low, high = torch.aminmax(weight)
        largest = torch.maximum(-low, high)
    format.check_storable(largest)
    if importance is None:
        return largest
    if importance.shape != weight.shape[1:]:
        raise ValueError(
            f"an importance of {list(importance.shape)} does not fit a weight of {list(weight.shape)}: "
            f"give one number an input, [{weight.shape[1]}]"
        )
    check_finite(importance, "weights")
    if importance.numel() and importance.max().double() * largest.double() ** 2 > LARGEST_ERROR:
        raise ValueError(
            f"importances up to {importance.max():g} are too large for values up to {largest:g}: "
            "divide them all by their mean"
        )
    return largest


def _file() -> Path:
    """Return the library's file; Python's ``llama_cpp`` is not imported, which would load a backend."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(PACKAGE, EXTRA)
    endings = {"darwin": ".dylib", "win32": ".dll"}
    names = [f"{start}ggml-base{endings.get(sys.platform, '.so')}" for start in ("lib", "")]
    for folder in spec.submodule_search_locations:
        for file in (Path(folder) / "lib" / name for name in names):
            if file.is_file():
                return file
    raise _unknown(f"has no {' or '.join(names)}")


def _load(file: Path) -> ctypes.CDLL:
    handle = ctypes.CDLL(str(file))
    pointer, number, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    try:
        handle.ggml_quantize_init.argtypes = [kind]
        handle.ggml_quantize_init.restype = None
        handle.ggml_quantize_requires_imatrix.argtypes = [kind]
        handle.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        handle.ggml_quantize_chunk.argtypes = [kind, pointer, pointer, *[number] * 3, pointer]
        handle.ggml_quantize_chunk.restype = ctypes.c_size_t
        handle.ggml_type_name.argtypes = [kind]
        handle.ggml_type_name.restype = ctypes.c_char_p
        handle.ggml_row_size.argtypes = [kind, number]
        handle.ggml_row_size.restype = ctypes.c_size_t
    except AttributeError as error:
        raise _unknown(f"lacks a function ({error})") from error
    return handle


def _check_library(found: Library) -> None:
    """Compare names, sizes and the bytes of two small matrices with ours.

    Steps of the first matrix are powers of two, so that every way to round gives its bytes. The second
    is weighted: ggml's error must be that of our search, which is the same one.
    """
    for format in BLOCK_FORMATS.values():
        name = (found.handle.ggml_type_name(format.type_id) or b"").decode()
        if name.upper() != format.name:
            raise _unknown(f"calls type {format.type_id} {name!r} and not {format.name}")
        if found.handle.ggml_row_size(format.type_id, 256) != format.storage_bytes((256,)):
            raise _unknown(f"has blocks of another size for {format.name}")
    plain, weighted = BLOCK_FORMATS["Q8_0"], BLOCK_FORMATS["Q4_0"]
    ramp = ((torch.arange(4 * 64) * 37) % 255 - 127).reshape(4, 64) / 64
    ramp[:, ::32] = 127 / 64
    if not torch.equal(found.encode(ramp, plain, None), plain.encode(ramp)):
        raise _unknown("encodes Q8_0 in another way")
    importance = torch.arange(64.0) % 7
    theirs, ours = found.encode(ramp, weighted, importance), weighted.encode(ramp, importance)
    if not 0.98 < _error(theirs, ramp, importance) / _error(ours, ramp, importance) < 1.02:
        raise _unknown("does not weigh Q4_0 by importance")


def _error(data: Tensor, exact: Tensor, importance: Tensor) -> float:
    values = BLOCK_FORMATS["Q4_0"].decode(data)
    return float(((values - exact).square() * importance).sum())


def _unknown(what: str) -> TargetError:
    return TargetError(
        f"the libggml of {PACKAGE} {version('llama_cpp_python')} {what}: it cannot be used to encode, so "
        f"install another version of {PACKAGE} or leave out --encoder ggml"
    )
