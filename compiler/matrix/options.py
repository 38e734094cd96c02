"""The options of a build as ``qcompile.toml`` spells them: those of ``qcompile build`` without dashes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from qcompile.compiler.matrix.sizes import SIZE, size


def _kebab(name: str) -> str:
    return name.replace("_", "-")


_SIZE_SCHEMA = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": f"^{SIZE}$"}]
}
Size = Annotated[int, PlainValidator(size), WithJsonSchema(_SIZE_SCHEMA)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PathText = Annotated[str, Field(min_length=1)]


class Table(BaseModel):
    """A table of the file: no key but its own, no value of another type."""

    model_config = ConfigDict(
        alias_generator=_kebab,
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
    )


class Options(Table):
    """What may be said of builds; the default is that of the flag of the same name."""

    format: str | None = None
    """Artifact format: onnx, coreml, tvm, gguf; the device's by default."""
    calibrate: PathText | None = None
    """Calibration data: .npz, .npy, .safetensors, a folder of .npy, a text, or `random`."""
    num_samples: Count | None = None
    """Calibration samples to use; all by default."""
    seed: int | None = None
    """For choosing samples."""
    granularity: Literal["per-tensor", "per-channel", "per-group"] | None = None
    """What shares a scale or a palette; the precision's own by default."""
    group_size: Count | None = None
    """Of granularity per-group."""
    palette_entries: Literal["fp16", "int8"] | None = None
    """How a palette's values are stored."""
    channel_scales: bool | None = None
    """Palettes with a scale a channel besides."""
    minimum_os: str | None = None
    """Oldest system to run on."""
    tune: Annotated[int, Field(ge=0)] | None = None
    """tvm: schedules to measure."""
    tune_database: PathText | None = None
    """tvm: measured schedules, which are read and added to; no input in the sense of qcompile.lock."""
    objects: bool | None = None
    """tvm: also write objects.tar."""
    rounding: Literal["nearest", "gptq", "adaround"] | None = None
    """How weights are rounded."""
    tensor_type: dict[str, str] | None = None
    """gguf, and under a budget: regular expression of tensors' names = type."""
    encoder: Literal["qcompile", "ggml"] | None = None
    """gguf: ggml gives llama.cpp's own bytes."""
    imatrix: PathText | None = None
    """gguf: llama.cpp's importances, instead of calibration data."""
    seq_len: Annotated[int, Field(ge=2)] | None = None
    """gguf: tokens of a calibration sequence."""
    max_size: Size | None = None
    """Budget: the artifact's bytes at most, 4000000 or "4MB"."""
    target_bpw: Positive | None = None
    """Budget: bits of a weight at most, on average."""
    max_ram: Size | None = None
    """Budget: memory at most of a process that runs it."""
    context: Count | None = None
    """Tokens that max-ram has room for."""
    kv_type: Literal["f16", "f32", "q8_0"] | None = None
    """gguf: how keys and values are remembered."""
    max_latency: Positive | None = None
    """Budget: milliseconds of a token or call at most."""
    max_kl: Positive | None = None
    """Budget: nats of divergence from the original's predictions at most."""
    optimize: Literal["quality", "size", "latency"] | None = None
    """What is improved once all limits hold."""
    plan: PathText | None = None
    """A saved plan to build."""
    ignore: list[str] | None = None
    """Weights whose layers stay float."""
    min_sqnr: Finite | None = None
    """Gate: decibels of the outputs against PyTorch."""
    max_drop: Finite | None = None
    """Gate: how many points evaluate()'s metric may fall."""
    evaluate: bool | None = None
    """Whether to run the model file's evaluate()."""
    max_host_ram: Size | None = None
    """Memory of the build: all of a language model's, of others activations."""

    def flags(self) -> dict[str, Any]:
        """Return what is said, by the flags' names with underscores."""
        said = {name: getattr(self, name) for name in self.model_fields_set & set(OPTION_NAMES)}
        if said.get("tensor_type") is not None:
            said["tensor_type"] = [list(pair) for pair in sorted(said["tensor_type"].items())]
        if said.get("ignore") is not None:
            said["ignore"] = sorted(said["ignore"])
        return said


OPTION_NAMES = tuple(Options.model_fields)
PATH_OPTIONS = ("calibrate", "imatrix", "plan")
"""Options that name an input; ``tune_database`` names what builds write."""
