"""``qcompile.toml`` as types: what its tables are, and the JSON schema for editors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from qcompile.compiler.matrix.options import Options, PathText, Table

FILE = "qcompile.toml"
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$")]
Pattern = Annotated[str, Field(min_length=1)]


class Model(Options):
    """A model, and options of all of its builds."""

    path: PathText
    """A model file, package.module:factory, a .pt2 program, or a language model's directory."""
    files: list[PathText] = Field(default_factory=list)
    """Files and folders that the model file reads in ways that Python does not see; others are found."""
    precisions: list[Name] | None = None
    """Instead of those of the target and of the matrix."""


class Target(Options):
    """A target of the matrix, and options of all of its builds."""

    device: str | None = None
    """A device, host, a device file or a format; the table's name by default."""
    precisions: list[Name] | None = None
    """Instead of the matrix's, for models that have no list of their own."""


class Where(Table):
    """Builds that a table is of: those that fit all of its patterns; `*` stands for anything."""

    model: Pattern | None = None
    """Name of a model."""
    target: Pattern | None = None
    """Name of a target."""
    precision: Pattern | None = None
    """A precision of the lists; builds at the device's own precision have none."""


class Override(Where, Options):
    """Options of some builds, which count more than those of models and targets."""


class Matrix(Table):
    """Which builds there are: each model for each target at each precision, but for what is excluded."""

    targets: list[str] = Field(default_factory=list)
    """Names of devices, `host`, formats, or tables [targets.NAME]."""
    models: list[str] | None = None
    """All models by default."""
    precisions: list[Name] | None = None
    """The device's own by default."""
    exclude: list[Where] = Field(default_factory=list)
    """Builds that there are not."""
    override: list[Override] = Field(default_factory=list)
    """Options of some builds; the last that says something counts."""


class Settings(Table):
    """The whole file."""

    output: PathText = "build"
    """Folder of the bundles, each NAME.qc."""
    defaults: Options = Field(default_factory=Options)
    """Options of all builds, which models, targets and overrides may change."""
    models: dict[Name, Model] = Field(default_factory=dict)
    """By name, which is part of the bundles' names."""
    targets: dict[Name, Target] = Field(default_factory=dict)
    """Options of targets that the matrix names."""
    matrix: Matrix = Field(default_factory=Matrix)
    """Which builds there are."""


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, for editors."""
    found = Settings.model_json_schema(by_alias=True)
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FILE}
    return found | title
