"""A loaded bundle: numpy in, numpy out, through the engine that the bundle names."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime import manifest as manifests
from qcompile.runtime.errors import BundleError, InputError
from qcompile.runtime.manifest import Manifest, TensorInfo

Array = NDArray[Any]


class Engine(Protocol):
    """One module of ``runtime/sessions``: how an engine loads an artifact and runs it."""

    version: str

    def __init__(self, artifact: Path, options: Mapping[str, Any], threads: int) -> None: ...

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        """Run on inputs in the manifest's order; outputs likewise."""


class Session:
    """A bundle that is ready to run.

    Args:
        folder: The bundle.
        threads: Of the engine.
        check_files: Compare all files with the manifest's digests first.
        engine: What stands in for the engine that the manifest names.

    Raises:
        BundleError: The bundle cannot be read or trusted, or the engine is older than it needs.
        MissingPackageError: Its engine is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int = 1,
        check_files: bool = True,
        engine: type[Engine] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = manifests.read(self.folder, check_files=check_files)
        self._inputs = self.manifest.inputs
        self._names = {i.name for i in self._inputs}
        self._outputs = [o.name for o in self.manifest.outputs]
        self._dtypes = [np.dtype(i.dtype) for i in self._inputs]
        kind = engine or engine_class(str(self.manifest.engine.get("name", "")))
        artifact = self.folder / self.manifest.artifact
        options = self.manifest.engine.get("options", {})
        try:
            self._engine = kind(artifact, options, threads)
        except BundleError as error:
            raise BundleError(f"{artifact}: {error}") from error
        if engine is None:
            _check_version(self.manifest.engine, self._engine)

    @property
    def engine(self) -> Engine:
        """What runs the artifact."""
        return self._engine

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model.

        Args:
            inputs: Arrays by name; dtypes must be those of the manifest.

        Returns:
            Outputs by name.

        Raises:
            InputError: Inputs are missing, unknown, or of another dtype or shape.
        """
        if inputs.keys() != self._names:
            raise InputError(_mismatch(inputs, self._inputs))
        values = [inputs[i.name] for i in self._inputs]
        if not all(map(_fits, values, self._dtypes, self._inputs)):
            raise InputError(_mismatch(inputs, self._inputs))
        problems = _wrong_sizes(values, self._inputs)
        if problems:
            raise InputError(f"inputs do not fit the model: {'; '.join(problems)}")
        return dict(zip(self._outputs, self._engine.run(values), strict=True))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{i.name}: {i.dtype}[{_sizes(i.shape)}]" for i in self._inputs)
        return f"Session({self.manifest.name} for {self.manifest.target}; {inputs})"


def load(folder: str | Path, *, threads: int = 1) -> Session:
    """Load a bundle.

    Args:
        folder: The bundle, ``NAME.qc``.
        threads: Of the engine.
    """
    return Session(folder, threads=threads)


def engine_class(name: str) -> type[Engine]:
    """Return the engine of a name: a module of ``runtime/sessions`` has the engine's name.

    Raises:
        BundleError: This runtime has no such engine.
    """
    module = f"qcompile.runtime.sessions.{name}"
    if not name.isidentifier() or importlib.util.find_spec(module) is None:
        raise BundleError(f"this runtime has no engine {name!r}; update qcompile")
    engine: type[Engine] = importlib.import_module(module).Engine
    return engine


def _fits(value: Any, dtype: Any, info: TensorInfo) -> bool:
    if not isinstance(value, np.ndarray):
        return False
    return bool(value.dtype == dtype) and value.ndim == len(info.shape)


def _check_version(wanted: Mapping[str, Any], engine: Engine) -> None:
    minimum, version = str(wanted.get("minimum", "0")), engine.version
    if _release(version) < _release(minimum):
        system = getattr(engine, "system", None)  # that it is a part of, unless it is a package
        name = system or getattr(engine, "package", wanted["name"])
        advice = f"update {system}" if system else f"run: pip install --upgrade '{name}>={minimum}'"
        raise BundleError(
            f"the bundle was made for {name} {minimum} or later, and this is {version}, which would "
            f"compute otherwise than was verified; {advice}"
        )


def _release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``1.23.0rc1`` is (1, 23, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)  # type: ignore[index]


def _mismatch(inputs: Mapping[str, Array], wanted: Sequence[TensorInfo]) -> str:
    given = ", ".join(f"{n}: {_kind(v)}" for n, v in inputs.items())
    expected = ", ".join(f"{i.name}: {i.dtype}[{_sizes(i.shape)}]" for i in wanted)
    return f"inputs do not fit the model: got {given or 'none'}; expected {expected}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{_sizes(value.shape)}]"
    return f"{type(value).__name__}, which is no numpy array"


def _sizes(shape: Sequence[int | str]) -> str:
    return ", ".join(map(str, shape))


def _wrong_sizes(values: Sequence[Array], wanted: Sequence[TensorInfo]) -> list[str]:
    problems = []
    free: dict[str, int] = {}
    for value, info in zip(values, wanted, strict=True):
        for axis, (size, expected) in enumerate(zip(value.shape, info.shape, strict=True)):
            needed = free.setdefault(expected, size) if isinstance(expected, str) else expected
            if size != needed:
                label = f" ({expected})" if isinstance(expected, str) else ""
                problems.append(f"{info.name} has {size} on axis {axis}{label}, not {needed}")
    return problems
