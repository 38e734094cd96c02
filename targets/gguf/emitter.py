"""The emitter for GGUF: language models for llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import (
    CalibrationError,
    MissingPackageError,
    TargetError,
    UnsupportedError,
)
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass
from qcompile.passes.graph.eliminate_dead_code import EliminateDeadCode
from qcompile.passes.graph.use_linear import UseLinear
from qcompile.passes.quantization.block_store import BlockStore
from qcompile.passes.quantization.fold_input_scales import FoldInputScales
from qcompile.passes.quantization.quantize_blocks import QuantizeBlocks
from qcompile.passes.quantization.step_store import StepStore
from qcompile.targets.base import Emitter
from qcompile.targets.device import Device
from qcompile.targets.gguf import compare, running
from qcompile.targets.gguf.choices import nearest_mix, tensor_choices
from qcompile.targets.gguf.companions import modelfile
from qcompile.targets.gguf.container import write_gguf
from qcompile.targets.gguf.importance import importances
from qcompile.targets.gguf.layout import Layout, stored_tensors
from qcompile.targets.gguf.mixes import MIXES
from qcompile.targets.gguf.planning import file_plan
from qcompile.targets.gguf.times import token_times
from qcompile.targets.options import DEFAULT_WEIGHTS, BlockOptions, WeightOptions
from qcompile.targets.order import Emitted, Order, Recipe, Scheme
from qcompile.targets.plans import EngineMemory, FilePlan, NodePlan, TensorChoices, TokenTimes

ARTIFACT = "model.gguf"
MINIMUM = "0.3.16"
"""Of llama-cpp-python: the first with the functions that the runtime calls."""
_PACKAGES = ("gguf", "transformers", "tokenizers", "llama-cpp-python")
_MODULES = ("gguf", "transformers", "tokenizers", "llama_cpp")


class GgufEmitter(Emitter):
    """Writes ``model.gguf``."""

    name = "gguf"
    description = "GGUF for llama.cpp, Ollama and LM Studio: language models"
    takes_checkpoints = True

    def precisions(self, device: Device) -> Sequence[str]:
        """Return llama.cpp's mixes; every CPU runs all of them."""
        kind = device.cuda_arch or device.arch
        if kind not in ("x86_64", "aarch64"):
            raise TargetError(
                f"{device.name} is {kind}: GGUF bundles are made for CPUs, x86-64 and aarch64, where they "
                "are verified; any llama.cpp runs the file"
            )
        return tuple(MIXES)

    def default_precision(self, device: Device) -> str:
        """Return the mix that llama.cpp's own tools have by default."""
        return "q4_k_m"

    def scheme(
        self, precision: str, device: Device, options: WeightOptions = DEFAULT_WEIGHTS
    ) -> Scheme:
        """Return the scheme of a mix; formats are each tensor's own."""
        if options != DEFAULT_WEIGHTS:
            raise TargetError(
                "gguf takes its formats from the mix: leave out --granularity, --group-size, "
                "--channel-scales and --palette-entries; --tensor-type REGEX=TYPE changes single tensors"
            )
        return Scheme(precision, None, None)

    def check(self, graph: Graph, device: Device) -> None:
        for package, module in zip(_PACKAGES, _MODULES, strict=True):
            if importlib.util.find_spec(module) is None:
                raise MissingPackageError(package, "gguf")

    def check_checkpoint(
        self, checkpoint: Checkpoint, scheme: Scheme, blocks: BlockOptions
    ) -> None:
        """Refuse what cannot be stored: an architecture, a tokenizer, a type without its importance."""
        layout = Layout.of(checkpoint, scheme.precision, blocks)
        layout.fields()
        if blocks.imatrix is not None:
            importances(layout, blocks.imatrix)
        if layout.chosen.needs_importance and not blocks.informed:
            raise CalibrationError(
                f"{scheme.precision} needs calibration data for {len(layout.chosen.needs_importance)} "
                "tensors: give --calibrate FILE (.txt, .jsonl, .npz) or --imatrix FILE, or a precision of "
                "3 bits or more"
            )

    def plan_checkpoint(
        self,
        checkpoint: Checkpoint,
        scheme: Scheme,
        blocks: BlockOptions,
        keep_float: frozenset[str] = frozenset(),
    ) -> FilePlan:
        """Return the tensors with their types and the size of the file; no weight is read."""
        return file_plan(Layout.of(checkpoint, scheme.precision, blocks), keep_float)

    def tensor_choices(
        self,
        checkpoint: Checkpoint,
        scheme: Scheme,
        blocks: BlockOptions,
        keep_float: frozenset[str] = frozenset(),
    ) -> Sequence[TensorChoices]:
        """Return the block formats that each tensor may have."""
        layout = Layout.of(checkpoint, scheme.precision, blocks)
        return tensor_choices(layout, blocks, keep_float)

    def precision_of(self, bits_per_weight: float) -> str:
        """Return the mix that is nearest."""
        return nearest_mix(bits_per_weight)

    def engine_memory(
        self, checkpoint: Checkpoint, scheme: Scheme, blocks: BlockOptions, context: int
    ) -> EngineMemory:
        """Return what llama.cpp says that it would allocate."""
        layout = Layout.of(checkpoint, scheme.precision, blocks)
        return running.engine_memory(layout, running.engine_options(blocks), context)

    def token_times(
        self,
        checkpoint: Checkpoint,
        scheme: Scheme,
        blocks: BlockOptions,
        choices: Sequence[TensorChoices],
        device: Device,
    ) -> TokenTimes:
        """Return times of llama.cpp on this machine, or bytes over the device's bandwidth."""
        layout = Layout.of(checkpoint, scheme.precision, blocks)
        return token_times(layout, choices, device, running.engine_options(blocks))

    def planned_milliseconds(
        self, checkpoint: Checkpoint, scheme: Scheme, blocks: BlockOptions
    ) -> float:
        """Let llama.cpp make some tokens with weights that are all zero."""
        layout = Layout.of(checkpoint, scheme.precision, blocks)
        return running.empty_milliseconds([layout], running.engine_options(blocks))[0]

    def measured_memory(self, artifact: Path, blocks: BlockOptions, context: int) -> int:
        """Let llama.cpp read a whole context."""
        options = running.engine_options(blocks)
        return running.measured_memory(artifact / ARTIFACT, options, context)

    def measured_milliseconds(self, artifact: Path, blocks: BlockOptions) -> float:
        """Let llama.cpp make some tokens."""
        options = running.engine_options(blocks)
        return running.milliseconds([artifact / ARTIFACT], options)[0]

    def plan(self, graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
        raise UnsupportedError("gguf plans tensors, not nodes")

    def float_passes(self) -> list[Pass]:
        """Return nothing that renames or mixes weights: their names are how the file is filled."""
        return [EliminateDeadCode(), UseLinear()]

    def passes(self, recipe: Recipe) -> list[Pass]:
        assert recipe.checkpoint is not None
        layout = Layout.of(recipe.checkpoint, recipe.scheme.precision, recipe.blocks)
        found = {}
        if recipe.blocks.imatrix is not None:
            found = importances(layout, recipe.blocks.imatrix)
        formats, steps = layout.formats(recipe.keep_float), StepStore(recipe.work)
        rounding = QuantizeBlocks(
            formats,
            recipe.log,
            BlockStore(recipe.work),
            samples=None if found else recipe.samples,
            importance=found,
            by_ggml=recipe.blocks.encoder == "ggml",
            max_bytes=recipe.max_bytes,
            on_progress=recipe.on_progress,
            feedback=recipe.rounding != "nearest",
            steps=steps,
            stages=recipe.stages,
        )
        if recipe.samples is None or recipe.rounding == "nearest":
            return [rounding]
        folding = FoldInputScales(
            formats,
            recipe.log,
            recipe.samples,
            recipe.max_bytes,
            recipe.on_progress,
            steps,
            recipe.stages,
        )
        return [folding, rounding]

    def emit(self, graph: Graph, folder: Path, order: Order) -> Emitted:
        assert order.checkpoint is not None
        layout = Layout.of(order.checkpoint, order.scheme.precision, order.blocks)
        write_gguf(folder / ARTIFACT, layout.fields(), stored_tensors(layout, graph))
        (folder / "Modelfile").write_text(modelfile(ARTIFACT, order.checkpoint), encoding="utf-8")
        tools = {package: importlib.metadata.version(package) for package in _PACKAGES}
        options = running.engine_options(order.blocks)
        engine = {"name": "llama_cpp", "minimum": MINIMUM, "options": options}
        files = (ARTIFACT, "Modelfile")
        return Emitted(ARTIFACT, files, engine, (), tools, layout=layout)

    def engine_errors(
        self, graph: Graph, folder: Path, emitted: Emitted, inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        options = emitted.engine["options"]
        return compare.engine_errors(
            emitted.layout, graph, folder / emitted.artifact, options, inputs, emitted.outputs
        )

    def proof(self, device: Device) -> Mapping[str, str]:
        """Return what the three comparisons show."""
        return compare.PROOF


EMITTER = GgufEmitter()
