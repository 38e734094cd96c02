"""One input or output of a model as it is written in Swift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.runtime.manifest import TensorInfo
from qcompile.targets.coreml import swift_names as names

_SCALARS = {
    "float16": "Float16",
    "float32": "Float",
    "float64": "Double",
    "int8": "Int8",
    "int32": "Int32",
}
# Channels of blue, green and red in an image input's array, the order of a BGRA pixel's bytes.
_ORDERS = {"RGB": "[2, 1, 0]", "BGR": "[0, 1, 2]", "GRAYSCALE": "[0]"}


@dataclass(frozen=True)
class Feature:
    """An input or output.

    Args:
        info: As the manifest has it.
        swift: Its name as a member.
        color: Of an image; ``None`` for an array.
    """

    info: TensorInfo
    swift: str
    color: str | None

    @property
    def key(self) -> str:
        """The literal of its name in the model."""
        return names.literal(self.info.name)

    @property
    def type(self) -> str:
        return "CVPixelBuffer" if self.color else f"MLShapedArray<{self.scalar}>"

    @property
    def scalar(self) -> str:
        """The type of an array's elements."""
        return _SCALARS[self.info.dtype]

    @property
    def comment(self) -> str:
        if self.color:
            height, width = self.info.shape[2:]
            return f"{self.key}: an image, {height} high and {width} wide."
        return f"{self.key}: {self.info.dtype} [{', '.join(map(str, self.info.shape))}]."

    def declaration(self, keyword: str) -> str:
        """Return the member, with ``let`` or ``var``."""
        return f"/// {self.comment}\npublic {keyword} {self.swift}: {self.type}"

    def given(self) -> str:
        """Return the entry of the dictionary that Core ML is given."""
        label = "pixelBuffer" if self.color else "shapedArray"
        return f"{self.key}: MLFeatureValue({label}: {self.swift}),"

    def assignment(self) -> str:
        """Return the assignment in an initializer whose images may have any size."""
        if not self.color:
            return f"self.{self.swift} = {self.swift}"
        height, width = self.info.shape[2:]
        grey = self.color == "GRAYSCALE"
        pixels = "kCVPixelFormatType_OneComponent8" if grey else "kCVPixelFormatType_32BGRA"
        return f"self.{self.swift} = try qcompilePixels({self.swift}, {width}, {height}, {pixels})"

    def vector(self) -> str:
        """Return the argument that is read from the vectors."""
        if self.color:
            return f"{self.swift}: try inputs.pixels({self.key}, order: {_ORDERS[self.color]})"
        reader = "whole" if self.scalar.startswith("Int") else "floating"
        return f"{self.swift}: try inputs.{reader}({self.key})"


def features(infos: Sequence[TensorInfo], images: Mapping[str, str]) -> list[Feature]:
    """Return inputs or outputs, in order.

    Args:
        infos: As the manifest has them.
        images: ``RGB``, ``BGR`` or ``GRAYSCALE`` of those that are images.

    Raises:
        UnsupportedError: Core ML has no arrays of a dtype.
    """
    bad = [
        f"{i.name} ({i.dtype})" for i in infos if i.name not in images and i.dtype not in _SCALARS
    ]
    if bad:
        raise UnsupportedError(
            f"Core ML has no arrays of these dtypes: {', '.join(bad)}; it has {', '.join(_SCALARS)}"
        )
    swift = names.identifiers([i.name for i in infos])
    return [Feature(i, s, images.get(i.name)) for i, s in zip(infos, swift, strict=True)]
