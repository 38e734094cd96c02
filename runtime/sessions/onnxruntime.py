"""ONNX Runtime, CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.runtime.errors import BundleError, MissingPackageError


class Engine:
    """A session of ``onnxruntime``.

    Args:
        artifact: ``model.onnx``.
        options: Session configuration entries by key, part of what was verified.
        threads: Inside an op; between ops there is one.
    """

    def __init__(self, artifact: Path, options: Mapping[str, Any], threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError("onnxruntime") from error
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        for key, value in sorted(options.items()):
            settings.add_session_config_entry(key, str(value))
        try:
            session = onnxruntime.InferenceSession(
                str(artifact), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise BundleError(
                f"onnxruntime {onnxruntime.__version__} refuses it: {reason}"
            ) from error
        self.version: str = onnxruntime.__version__
        self._session = session
        self._inputs = [i.name for i in session.get_inputs()]

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on inputs in the model's order."""
        found: Sequence[Any] = self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))
        return found
