"""MODEL as the user names it -> ``Source``.

A model file (or ``package.module:factory``) is the user's own Python and runs as such. A ``.pt2``
program is data: nothing is unpickled. So is a Hugging Face directory.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.interface import read_interface
from qcompile.compiler.frontend.trace import Inputs, from_exported, trace
from qcompile.compiler.frontend.user_code import describe, first_line, quiet
from qcompile.compiler.ir.checkpoint import Checkpoint
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
        checkpoint: The directory of a language model.
        figures: What ``evaluate`` gave for PyTorch's own model, once it was measured.
    """

    name: str
    where: str
    module: nn.Module
    graph: Graph
    calibration: Callable[[], Any] | None = None
    evaluate: Evaluate | None = None
    licence: str | None = None
    checkpoint: Checkpoint | None = None
    figures: Mapping[str, float] | None = field(default=None, init=False)


def load(model: str) -> Source:
    """Load what the user named.

    Raises:
        ModelError: It does not exist, is no model, or raises; says which and where.
    """
    path = Path(model)
    if path.suffix in PICKLES:
        raise ModelError(
            f"{model} is a pickled checkpoint: it holds weights but no model, and loading it would "
            "run code; write a model file with model() that builds the network and loads the "
            "weights from safetensors (torch.load with weights_only=True, then "
            "safetensors.torch.save_file)"
        )
    if path.suffix in (".py", ".pt2"):
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise ModelError(f"the model file {path} {found}")
        return _load_program(path) if path.suffix == ".pt2" else _load_file(path)
    if path.is_dir():
        return _load_directory(path)
    if ":" in model and "/" not in model:
        name, _, factory = model.partition(":")
        with _importable(""):
            hooks = _Hooks(_import(name), model, "")
            return hooks.source(factory, factory, model)
    exists = "is neither" if path.exists() else "does not exist; MODEL is neither"
    raise ModelError(
        f"{model} {exists} a model file (.py), a program saved by torch.export (.pt2), "
        "a Hugging Face directory, nor package.module:factory"
    )


def from_module(
    module: nn.Module, inputs: Inputs, *, dynamic_shapes: Any = None, name: str | None = None
) -> Source:
    """Return the source for a module that is already there."""
    if not isinstance(module, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, not {type(module).__name__}")
    graph = _trace(module, inputs, dynamic_shapes)
    return Source(name or type(module).__name__.lower(), type(module).__name__, module, graph)


@dataclass(frozen=True)
class _Hooks:
    """The functions of a model file.

    Args:
        module: That holds them.
        where: What the user named, for errors.
        folder: Whose modules they may import.
    """

    module: ModuleType
    where: str
    folder: str

    def source(self, factory: str, name: str, shown: str) -> Source:
        """Call them as far as the graph needs it."""
        make = self.find(factory, f"has no function {factory}() that returns the model")
        examples = self.find("inputs", "has no function inputs() that returns example inputs")
        module = make()
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"{factory}() of {self.where} must return a torch.nn.Module, "
                f"not {type(module).__name__}"
            )
        shapes = self.find("dynamic_shapes")
        graph = _trace(module, examples(), shapes() if shapes else None)
        graph.interface = read_interface(graph, self.module, self.find, self.where)
        return Source(
            name,
            shown,
            module,
            graph,
            self.find("calibration"),
            self.find("evaluate"),
            graph.interface.metadata.get("licence"),
        )

    def find(self, name: str, missing: str | None = None) -> Any:
        """Return a hook whose errors are ``ModelError``; ``None`` if the file has none.

        Raises:
            ModelError: It is no function, or ``missing`` and not there.
        """
        hook = getattr(self.module, name, None)
        if hook is None and missing is None:
            return None
        if not callable(hook):
            odd = f"has {name}, which is no function but {type(hook).__name__}"
            raise ModelError(f"{self.where} {odd if hook is not None else missing}")
        return lambda *arguments: self._call(hook, name, arguments)

    def _call(self, hook: Callable[..., Any], name: str, arguments: tuple[Any, ...]) -> Any:
        try:
            with torch.no_grad(), _importable(self.folder):
                return hook(*arguments)
        except QCompileError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{name}() of {self.where} fails: {describe(error)}") from error


def _load_file(path: Path) -> Source:
    folder = str(path.parent.resolve())
    with _importable(folder):
        return _Hooks(_run_file(path), str(path), folder).source("model", path.stem, path.name)


def _load_directory(path: Path) -> Source:
    from qcompile.compiler.frontend.huggingface.source import load_directory

    return load_directory(path)


def _load_program(path: Path) -> Source:
    try:
        with quiet(), _never_unpickling():
            program = torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"{path} is not a program that torch {torch.__version__} can load: "
            f"{first_line(error)}; save it again with torch.export.save"
        ) from error
    return Source(path.stem, path.name, program.module(), from_exported(program))


def _trace(module: nn.Module, inputs: Any, dynamic_shapes: Any) -> Graph:
    if not isinstance(inputs, Mapping | list | tuple | Tensor):
        raise ModelError(
            "inputs() must give tensors, by name or in order; "
            f"it gave {'nothing' if inputs is None else type(inputs).__name__}"
        )
    if not isinstance(dynamic_shapes, Mapping | list | tuple | None):
        raise ModelError(
            "dynamic_shapes() must give free axes by input name, as torch.export takes them "
            f'({{"image": {{0: torch.export.Dim("batch")}}}}), not {type(dynamic_shapes).__name__}'
        )
    with quiet():
        return trace(module, inputs, dynamic_shapes)


def _run_file(path: Path) -> ModuleType:
    name = f"_model_{path.stem}"  # registered, or the file's dataclasses do not find themselves
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _no_bytecode():
            spec.loader.exec_module(module)
    except QCompileError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"the model file {path} fails: {describe(error)}") from error
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(f"there is no module {error.name!r} to import the model from") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"the module {name} fails: {describe(error)}") from error


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Let the user's code import what lies beside it, as a script's own folder is."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have changed sys.path itself
            sys.path.remove(folder)


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Leave no __pycache__ beside the user's file."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@contextmanager
def _never_unpickling() -> Iterator[None]:
    """Make ``torch.export.load`` refuse pickled objects, which run code; else it accepts them."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        os.environ.pop(variable) if before is None else os.environ.update({variable: before})
