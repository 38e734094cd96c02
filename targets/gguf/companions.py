"""What lies beside ``model.gguf``: Ollama's Modelfile."""

from __future__ import annotations

from qcompile.compiler.ir.checkpoint import Checkpoint


def modelfile(artifact: str, checkpoint: Checkpoint) -> str:
    """Return a Modelfile: ``ollama create NAME -f Modelfile`` in the bundle's folder.

    Ollama reads the chat template and the tokens that end an answer from the file itself.

    Args:
        artifact: The file that it names.
        checkpoint: Says how long a text may be.
    """
    return f"FROM ./{artifact}\nPARAMETER num_ctx {checkpoint.context}\n"
