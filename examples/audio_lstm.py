"""An LSTM that names a sound: tone, rising or falling chirp, noise burst, tremolo, clicks.

Shows a recurrent network: nn.LSTM stays one operator from torch.export to ONNX.
Run: qcompile examples/audio_lstm.py --target host
The sounds are synthetic; `python -m examples.train.train_audio_lstm`, run beside examples/, makes
them, their features (50 frames of 20 mel bands, in steps of 4 dB) and the weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).parent / "data"
SOUNDS = ("tone", "rising", "falling", "noise", "tremolo", "clicks")
BANDS = 20


class AudioLSTM(nn.Module):
    """One LSTM layer over the frames and a classifier on its last output."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, hidden, batch_first=True)
        self.classifier = nn.Linear(hidden, len(SOUNDS))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(features)
        return self.classifier(output[:, -1])


def to_input(level: np.ndarray) -> np.ndarray:
    """From band levels in steps of 4 dB, [N, frames, bands], from -1 to 1.5."""
    return level.astype(np.float32) / 6 - 1


def model() -> nn.Module:
    from safetensors.torch import load_file

    network = AudioLSTM()
    # Stored in half precision, for size; load_state_dict copies into float32 parameters.
    network.load_state_dict(load_file(DATA / "audio_lstm.safetensors"))
    return network.eval()


def inputs() -> dict[str, torch.Tensor]:
    return {"features": torch.from_numpy(calibration()["features"][:2])}


def dynamic_shapes() -> dict[str, Any]:
    return {"features": {0: torch.export.Dim("batch", min=1, max=1024)}}


def calibration() -> dict[str, np.ndarray]:
    with np.load(DATA / "audio.npz") as file:
        return {"features": to_input(file["calibration_level"])}


def evaluate(predict: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> dict[str, float]:
    with np.load(DATA / "audio.npz") as file:
        features, label = to_input(file["test_level"]), file["test_label"]
    hits = 0
    for start in range(0, len(features), 100):
        batch = slice(start, start + 100)
        logits = next(iter(predict({"features": features[batch]}).values()))
        hits += int((logits.argmax(1) == label[batch]).sum())
    return {"top1": 100 * hits / len(features)}
