"""``Architecture``: what turns the checkpoints of one family of models into GGUF."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from qcompile.compiler.ir.errors import ModelError, UnsupportedError
from qcompile.targets.gguf.mix_rules import Hyperparameters
from qcompile.targets.gguf.tensors import GgufTensor

Config = Mapping[str, Any]
"""A checkpoint's ``config.json``."""

SHOWN = 20
"""Names in a message; a wrong family of checkpoint would give hundreds."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder.

    Args:
        layers: Blocks.
        width: Of the residual stream.
        inner: Of the feed-forward networks, or of an expert.
        heads: Of queries.
        kv_heads: Of keys and values.
        head_dim: Of a head.
        vocabulary: Rows of the embedding.
        context: Positions at most.
        experts: Of a mixture; 0 for none.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    experts: int = 0

    @property
    def queries(self) -> int:
        """Rows of the queries' matrix."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Rows of the keys' matrix, and of the values'."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Rule:
    """A tensor of the file and what its sources look like.

    Args:
        tensor: What is made.
        source_shape: Of each source in the checkpoint.
    """

    tensor: GgufTensor
    source_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Architecture(ABC):
    """One family of models.

    Its public methods take a configuration and first fill in what it leaves out.

    Args:
        name: What GGUF calls it.
        classes: Of transformers, as ``architectures`` of a configuration names them.
        model_types: As ``model_type`` names it, for a configuration that names no class.
        defaults: What a configuration means that leaves a key out, where transformers knows.
    """

    name: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    required: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
    )
    """Sizes that a configuration must say."""
    factors: ClassVar[tuple[str, ...]] = ()
    """Numbers that a configuration must say."""
    optional: ClassVar[tuple[str, ...]] = ("sliding_window", "n_inner")
    """Sizes that it may say."""
    ignored: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq",)
    """Ends of names of tensors that hold nothing: buffers that are computed."""

    def check(self, config: Config) -> None:
        """Raise for what llama.cpp cannot compute in this architecture, before any work.

        Raises:
            ModelError: Keys are missing or sizes do not fit each other.
            UnsupportedError: Names every feature that is refused.
        """
        full = self._full(config)
        refused = list(self._refusals(full))
        if "quantization_config" in full:
            refused.append("quantization_config: the checkpoint is quantized already")
        if refused:
            raise UnsupportedError(
                f"llama.cpp's {self.name} would not compute what this model does: {'; '.join(refused)}; "
                "use a checkpoint without them"
            )

    def metadata(self, config: Config) -> dict[str, Any]:
        """Return the fields of the architecture, ``{name}.*``, typed as ``fields.py`` says."""
        fields = self._fields(self._full(config))
        return {f"{self.name}.{key}": value for key, value in fields.items()}

    def tensors(self, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> list[GgufTensor]:
        """Return all tensors of the file, in its order.

        Args:
            config: The configuration.
            shapes: Of the checkpoint's tensors, by name.

        Raises:
            ModelError: Names all tensors that are missing, are not of the shape that the configuration
                gives them, or are of no use.
        """
        full = self._full(config)
        rules = list(self._rules(full, shapes))
        used = {source: rule for rule in rules for source in rule.tensor.sources}
        spare = set(used) | self._unused(full)
        wrong = {
            "missing": [name for name in used if name not in shapes],
            "of another shape": [
                f"{name} {list(shapes[name])}, not {list(rule.source_shape)}"
                for name, rule in used.items()
                if name in shapes and tuple(shapes[name]) != rule.source_shape
            ],
            "not known": [
                name for name in shapes if name not in spare and not name.endswith(self.ignored)
            ],
        }
        if any(wrong.values()):
            raise ModelError(
                f"the checkpoint does not fit its configuration as {self.name}: {_listed(wrong)}; "
                "check that the directory is complete and its config.json belongs to it"
            )
        return [rule.tensor for rule in rules]

    def hyperparameters(self, config: Config) -> Hyperparameters:
        """Return what the mixes look at."""
        sizes = self._sizes(self._full(config))
        return Hyperparameters(self.name, sizes.layers, sizes.heads, sizes.kv_heads, sizes.experts)

    def notes(self, config: Config) -> tuple[str, ...]:
        """Return what differs from PyTorch in some use of the model, a sentence each."""
        return tuple(self._notes(self._full(config)))

    @abstractmethod
    def _refusals(self, config: Config) -> Iterator[str]:
        """Yield what is not supported."""

    @abstractmethod
    def _fields(self, config: Config) -> dict[str, Any]:
        """Return the fields without the architecture's name before them."""

    @abstractmethod
    def _rules(self, config: Config, names: Collection[str]) -> Iterator[Rule]:
        """Yield the tensors of the file; ``names`` tells layouts of checkpoints apart."""

    def _notes(self, config: Config) -> Iterator[str]:
        yield from ()

    def _unused(self, config: Config) -> set[str]:
        """Return tensors that a checkpoint may hold and the model does not use."""
        return {"lm_head.weight"} if config.get("tie_word_embeddings") else set()

    def _sizes(self, config: Config) -> Sizes:
        heads = config["num_attention_heads"]
        return Sizes(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            inner=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim", config["hidden_size"] // heads),
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
        )

    def _full(self, config: Config) -> Config:
        """Return the configuration with what it leaves out, checked as far as sizes go."""
        given = {key: value for key, value in config.items() if value is not None}
        full = {**self.defaults, **given}
        missing = [key for key in (*self.required, *self.factors) if key not in full]
        if missing:
            raise ModelError(
                f"config.json lacks {', '.join(missing)}, which {self.name} needs: complete it"
            )
        self._check_sizes(full)
        return full

    def _check_sizes(self, config: Config) -> None:
        given = [*self.required, *(key for key in self.optional if key in config)]
        wrong = {key: config[key] for key in given if not _is_size(config[key])}
        wrong |= {key: config[key] for key in self.factors if not _is_number(config[key])}
        if not wrong:
            sizes = self._sizes(config)
            both = {"num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim}
            wrong = {key: value for key, value in both.items() if not _is_size(value)}
            if not wrong and sizes.heads % sizes.kv_heads == 0 and sizes.head_dim % 2 == 0:
                return
            wrong = wrong or {"num_attention_heads": sizes.heads, **both}
        listed = ", ".join(f"{key} = {value!r}" for key, value in wrong.items())
        raise ModelError(
            f"config.json holds numbers that no model can have: {listed}; sizes are whole numbers above 0, "
            "key-value heads divide attention heads, and a head has an even size"
        )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(wrong: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for what, names in wrong.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})")
    return "; ".join(parts)


def renamed(
    layer: int, sizes: Iterable[tuple[str, str, tuple[int, ...]]], prefix: str = "model.layers."
) -> Iterator[Rule]:
    """Yield tensors of a layer that only change their name.

    Args:
        layer: Its number.
        sizes: Of each its name in the file and in the checkpoint, within the layer, and its shape.
        prefix: Of layers in the checkpoint.
    """
    for name, source, shape in sizes:
        tensor = GgufTensor(f"blk.{layer}.{name}", shape, (f"{prefix}{layer}.{source}",))
        yield Rule(tensor, shape)


def activation_refusals(config: Config, key: str, known: Collection[str]) -> Iterator[str]:
    """Yield an activation function that the architecture has not got."""
    found = config.get(key)
    if found is not None and found not in known:
        yield f"{key} {found!r} (possible: {', '.join(sorted(known))})"


def window_note(config: Config, window: int | None, what: str) -> Iterator[str]:
    """Yield a sentence on a sliding window that llama.cpp does not keep."""
    if window is not None and window < config["max_position_embeddings"]:
        yield (
            f"llama.cpp attends over the whole context where {what} sees the last {window} tokens: "
            f"longer texts give other results than in PyTorch"
        )
