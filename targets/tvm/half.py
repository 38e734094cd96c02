"""Products in float16: summed in float32 with their bias, rounded once.

TVM's converters sum in float32 and go on in float32, which the next float16 value does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import fx

BIAS: Mapping[str, int | None] = {
    **dict.fromkeys(("convolution.default", "conv2d.default"), 2),
    **dict.fromkeys(("addmm.default", "baddbmm.default"), 0),
    **dict.fromkeys(("mm.default", "bmm.default", "matmul.default"), None),
}
"""Which argument of a product is added to the sum."""


def converters() -> dict[str, Callable[[fx.Node, Any], Any]]:
    """Return a converter for the PyTorch front end of Relax by the op's name."""
    return {name: partial(_convert, name) for name in BIAS}


def _convert(name: str, node: fx.Node, importer: Any) -> Any:
    from tvm import relax

    emit, env = importer.block_builder.emit, importer.env
    at = BIAS[name]
    bias: Any = node.args[at] if at is not None and len(node.args) > at else None
    kept = env.get(bias)
    if kept is not None:
        env[bias] = emit(relax.op.astype(kept, "float32"))
    found = importer.create_convert_map()[name](node)
    if kept is not None:
        env[bias] = kept
    return emit(relax.op.astype(found, str(node.meta["val"].dtype).removeprefix("torch.")))
