"""Functions of a free batch size: measured for one image, compiled as a loop over images.

A schedule needs known sizes. Where each image is computed alone, the function for one image is scheduled, and
the library's function runs it for image after image, as the kernels of ``kernels/`` do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from qcompile.targets.tvm.tools import load_tvm

PREPACK = "meta_schedule.layout_rewrite_preproc"
"""The mark of blocks that rewrite a constant; ``SplitLayoutRewritePreproc`` makes functions of them."""


def free_sizes(function: Any) -> list[Any]:
    """Return the variables in the shapes of a function's arguments, each once."""
    found: dict[int, Any] = {}
    for shape in map(_shape, function.params):
        for variable in _variables(shape):
            found[variable.id_] = variable
    return list(found.values())


def for_one_image(function: Any) -> Any | None:
    """Return a function for a batch of one; itself if all sizes are known.

    Returns:
        ``None`` unless the only free size is the batch, the first axis, and each image is computed alone.
    """
    if any(not hasattr(parameter.ty, "shape") for parameter in function.params):
        return None  # a size is an argument of its own
    free = free_sizes(function)
    if not free:
        return function
    if len(free) > 1 or not _images_are_alone(function, free[0]):
        return None
    tirx = load_tvm().tirx
    one = tirx.const(1, "int64")
    given = {
        p: tirx.decl_buffer((one, *_shape(p)[1:]), p.ty.dtype.dtype, p.name)
        for p in function.params
        if _has_batch(p, free[0])
    }
    return function.specialize(given)


def for_each_image(function: Any, scheduled: Any) -> Any:
    """Return a scheduled function for one image as a loop over the images of ``function``.

    Args:
        function: Of a free batch; ``for_one_image`` took it.
        scheduled: What ``for_one_image`` gave, with a schedule applied.
    """
    tvm = load_tvm()
    tirx, s_tir = tvm.tirx, tvm.s_tir
    batch = free_sizes(function)[0]
    image, index = (tirx.Var(name, batch.ty) for name in ("image", "i"))
    views = _Views(function, scheduled, batch, index)
    before, after = _prepacking(scheduled.body.block)
    shared = {buffer.id_ for block in before for buffer in _written(block)}
    buffers = scheduled.body.block.alloc_buffers
    axis = tirx.IterVar(tvm.ir.Range(0, batch), index, 0)
    block = s_tir.SBlock(
        [axis],
        views.regions(range(len(function.params))),
        views.regions(range(len(function.params))),
        "image",
        views.replace(_sequence(after)),
        alloc_buffers=[b for b in buffers if b.id_ not in shared],
        match_buffers=views.matches,
    )
    each = s_tir.SBlockRealize([image], True, block)
    loop = tirx.For(image, tirx.const(0, "int64"), batch, tirx.ForKind.SERIAL, each)
    outside = [b for b in buffers if b.id_ in shared]
    body = _sequence([*map(views.replace, before), loop])
    root = s_tir.SBlock([], [], [], "root", body, alloc_buffers=outside)
    whole = s_tir.SBlockRealize([], True, root)
    made = tirx.PrimFunc(function.params, whole, function.ret_type, scheduled.attrs)
    return s_tir.renew_defs(made)


class _Views:
    """What stands for each argument of the scheduled function inside of the loop."""

    def __init__(self, function: Any, scheduled: Any, batch: Any, index: Any) -> None:
        tvm = load_tvm()
        self.function, self.batch, self.index = function, batch, index
        self.matches: list[Any] = []
        self.stand_in: dict[int, Any] = {}
        for ours, theirs in zip(function.params, scheduled.params, strict=True):
            self.stand_in[theirs.id_] = ours
            if _has_batch(ours, batch):
                view = _view(theirs)
                self.stand_in[theirs.id_] = view
                self.matches.append(tvm.s_tir.MatchBufferRegion(view, self._region(ours)))

    def _region(self, parameter: Any) -> Any:
        tvm = load_tvm()
        sizes = _shape(parameter)
        ranges = [tvm.ir.Range.from_min_extent(0, size) for size in sizes]
        if _has_batch(parameter, self.batch):
            ranges[0] = tvm.ir.Range.from_min_extent(self.index, 1)
        return tvm.tirx.BufferRegion(parameter, ranges)

    def regions(self, indices: range) -> list[Any]:
        """Return what one image touches of the arguments."""
        return [self._region(self.function.params[i]) for i in indices]

    def replace(self, statement: Any) -> Any:
        """Return a statement on the views."""
        import tvm_ffi

        variable = load_tvm().tirx.Var
        return tvm_ffi.structural_map(
            statement, [(variable, lambda found: self.stand_in.get(found.id_, found))]
        )


def _view(parameter: Any) -> Any:
    """Return a buffer like an argument that may begin anywhere in another one."""
    tirx = load_tvm().tirx
    start = tirx.Var(f"{parameter.name}_start", "int64")
    return tirx.decl_buffer(
        _shape(parameter),
        parameter.ty.dtype.dtype,
        parameter.name,
        elem_offset=start,
        offset_factor=1,
    )


def _prepacking(root: Any) -> tuple[list[Any], list[Any]]:
    """Return the statements that rewrite constants, and the others."""
    body = root.body
    statements = list(body.seq) if hasattr(body, "seq") else [body]
    parts: tuple[list[Any], list[Any]] = ([], [])
    for statement in statements:
        blocks = list(_nodes(statement, load_tvm().s_tir.SBlock))
        parts[not any(PREPACK in block.annotations for block in blocks)].append(statement)
    return parts


def _images_are_alone(function: Any, batch: Any) -> bool:
    """Return whether the batch is but the first axis of arguments, and no image sees another.

    So it is if, in each block, whatever has a batch is read and written at the block's one index of images,
    the batch is in no other place, and what has none is only read. A walk finds the batch in the type of each
    buffer that has it, so it is found once for each access, as the index of the image is.
    """
    root = function.body.block
    buffers = [*function.params, *root.alloc_buffers]
    with_batch = {b.id_ for b in buffers if _has_batch(b, batch)}
    others = [b for b in buffers if b.id_ not in with_batch]
    if any(_variables(_shape(b)) for b in others) or any(
        _variables(_shape(b)[1:]) for b in buffers if b.id_ in with_batch
    ):
        return False
    blocks = _nodes(root.body, load_tvm().s_tir.SBlock)
    # Also no less than all is in blocks, and no block in a block.
    inside = sum(len(_accesses(block)) for block in blocks)
    return inside == len(_accesses(root.body)) and all(
        _is_alone(block, batch, with_batch) for block in blocks
    )


def _is_alone(block: Any, batch: Any, with_batch: set[int]) -> bool:
    images = {
        axis.var.id_
        for axis in block.iter_vars
        if axis.iter_type == 0 and _is(axis.dom.extent, batch)
    }
    used = set()
    for buffer, indices, is_store in _accesses(block):
        if buffer.id_ in with_batch:
            used.add(getattr(indices[0], "id_", None))
        elif is_store:
            return False
    parts = [part for part in (block.body, block.init) if part is not None]
    counts = Counter(v.id_ for part in parts for v in _variables(part))
    uses = sum(b.id_ in with_batch for part in parts for b, _, _ in _accesses(part))
    seen = sum(counts[image] for image in images)
    return len(used) == 1 and used <= images and seen == uses == counts[batch.id_]


def _accesses(root: Any) -> list[tuple[Any, Any, bool]]:
    """Return what is read and written: the buffer, the indices, whether it is written."""
    tvm = load_tvm()
    loads = [(a.source, a.indices, False) for a in _nodes(root, tvm.ir.TensorLoad)]
    return loads + [(a.buffer, a.indices, True) for a in _nodes(root, tvm.tirx.BufferStore)]


def _written(statement: Any) -> Iterator[Any]:
    return (store.buffer for store in _nodes(statement, load_tvm().tirx.BufferStore))


def _sequence(statements: list[Any]) -> Any:
    return statements[0] if len(statements) == 1 else load_tvm().tirx.SeqStmt(statements)


def _has_batch(buffer: Any, batch: Any) -> bool:
    shape = _shape(buffer)
    return bool(shape) and _is(shape[0], batch)


def _is(value: Any, variable: Any) -> bool:
    return isinstance(value, load_tvm().tirx.Var) and bool(value.id_ == variable.id_)


def _shape(buffer: Any) -> list[Any]:
    return list(buffer.ty.shape)


def _variables(value: Any) -> list[Any]:
    """Return each occurrence of an integer variable; none of a buffer's."""
    tirx = load_tvm().tirx
    found = [v for part in _parts(value) for v in _nodes(part, tirx.Var)]
    return [v for v in found if not tirx.is_buffer_var(v)]


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _nodes(root: Any, kinds: Any) -> list[Any]:
    """Return the parts of some kinds of a statement or expression."""
    import tvm_ffi

    found: list[Any] = []
    tvm_ffi.structural_walk(root, [(kinds, found.append)])
    return found
