"""MODEL as the user names it -> ``Source``: a model file, ``package.module:factory``, or a ``.pt2`` program.

A model file is the user's own Python and runs as such. Everything else is data: nothing is unpickled.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from qcompile.compiler.frontend.trace import Inputs, from_exported, trace
from qcompile.compiler.ir.errors import ModelError, QCompileError
from qcompile.compiler.ir.graph import Graph

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
Predict = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Evaluate = Callable[[Predict], Any]


@dataclass
class Source:
    """A model with all that came with it.

    Args:
        name: For the bundle, ``mobilenet_v2``.
        where: What the user named.
        module: What PyTorch runs; the reference for parity.
        graph: The float graph.
        calibration: Makes the samples, if the model file has them.
        evaluate: Measures quality, if the model file can.
        licence: Licence fields passed through to the manifest.
    """

    name: str
    where: str
    module: nn.Module
    graph: Graph
    calibration: Callable[[], Any] | None = None
    evaluate: Evaluate | None = None
    licence: str | None = None


def load(model: str) -> Source:
    """Load what the user named.

    Raises:
        ModelError: It does not exist, is no model, or raises; says which and where.
    """
    path = Path(model)
    if path.suffix == ".pt2":
        return _load_program(path)
    if path.suffix in PICKLES:
        raise ModelError(
            f"{model} is a pickled checkpoint: it holds weights but no model, and loading it would run "
            "code; write a model file with model() that builds the network and loads the weights from "
            "safetensors (torch.load with weights_only=True, then safetensors.torch.save_file)"
        )
    if path.suffix == ".py":
        return _from_hooks(_run_file(path), "model", path.stem, model)
    if ":" in model and "/" not in model:
        name, _, factory = model.partition(":")
        return _from_hooks(_import(name), factory, factory, model)
    exists = "is neither" if path.exists() else "does not exist; MODEL is neither"
    raise ModelError(
        f"{model} {exists} a model file (.py), a program saved by torch.export (.pt2), "
        "nor package.module:factory"
    )


def from_module(
    module: nn.Module, inputs: Inputs, *, dynamic_shapes: Any = None, name: str | None = None
) -> Source:
    """Return the source for a module that is already there."""
    if not isinstance(module, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, not {type(module).__name__}")
    graph = trace(module, inputs, dynamic_shapes)
    return Source(name or type(module).__name__.lower(), type(module).__name__, module, graph)


def _load_program(path: Path) -> Source:
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"{path} is not a program that torch {torch.__version__} can load: {_first_line(error)}; "
            "save it again with torch.export.save"
        ) from error
    return Source(path.stem, path.name, program.module(), from_exported(program))


def _from_hooks(hooks: ModuleType, factory: str, name: str, where: str) -> Source:
    make = getattr(hooks, factory, None)
    if not callable(make):
        raise ModelError(f"{where} has no function {factory}() that returns the model")
    if not callable(getattr(hooks, "inputs", None)):
        raise ModelError(f"{where} has no function inputs() that returns example inputs by name")
    module = _call(make, factory, where)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{factory}() of {where} must return a torch.nn.Module, not {type(module).__name__}"
        )
    inputs = _call(hooks.inputs, "inputs", where)
    shapes = getattr(hooks, "dynamic_shapes", None)
    dynamic = _call(shapes, "dynamic_shapes", where) if callable(shapes) else None
    calibration, evaluate = getattr(hooks, "calibration", None), getattr(hooks, "evaluate", None)
    graph = trace(module, inputs, dynamic)
    shown = Path(where).name if where.endswith(".py") else where
    return Source(
        name, shown, module, graph, calibration, evaluate, getattr(hooks, "LICENSE", None)
    )


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"the model file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except QCompileError:
        raise
    except Exception as error:
        raise ModelError(f"the model file {path} fails: {_describe(error)}") from error
    finally:
        sys.path.pop(0)
    return module


def _import(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(f"there is no module {error.name!r} to import the model from") from error
    except Exception as error:
        raise ModelError(f"the module {name} fails: {_describe(error)}") from error
    finally:
        sys.path.pop(0)


def _call(function: Callable[[], Any], name: str, where: str) -> Any:
    try:
        with torch.no_grad():
            return function()
    except QCompileError:
        raise
    except Exception as error:
        raise ModelError(f"{name}() of {where} fails: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "qcompile" not in Path(f.filename).parts and f.line]
    own = [f for f in own if not f.filename.startswith("<")]
    place = f" (at {own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{_first_line(error)}{place}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
