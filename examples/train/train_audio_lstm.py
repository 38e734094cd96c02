"""Make synthetic sounds, train examples/audio_lstm.py on them; write its weights and its features.

Run it beside examples/: `python -m examples.train.train_audio_lstm` (half a minute on one core).
"""

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from examples.audio_lstm import BANDS, DATA, SOUNDS, AudioLSTM, to_input

RATE, HOP, WINDOW, FRAMES = 8000, 160, 512, 50  # one second
TRAIN, HELD_OUT, CALIBRATION, EPOCHS, BATCH = 6000, 240, 48, 20, 64


def sound(kind: str, rng: np.random.Generator) -> np.ndarray:
    """One second of one kind, unit power, in noise that is 16 dB weaker to 2 dB stronger."""
    t = np.arange(HOP * (FRAMES - 1) + WINDOW) / RATE
    low = rng.uniform(200, 2000)
    high = low * rng.uniform(1.2, 2)
    sweep = {"rising": (low, high), "falling": (high, low)}.get(kind, (low, low))
    phase = 2 * np.pi * (sweep[0] * t + (sweep[1] - sweep[0]) * t**2 / 2 / t[-1])
    signal = np.sin(phase + rng.uniform(0, 6))
    if kind == "tremolo":
        signal *= 1 + rng.uniform(0.75, 1) * np.sin(2 * np.pi * rng.uniform(2, 8) * t)
    elif kind == "noise":
        start, length = rng.uniform(0, 0.6), rng.uniform(0.1, 0.4)
        signal = rng.standard_normal(len(t)) * ((t > start) & (t < start + length))
    elif kind == "clicks":
        signal = np.zeros(len(t))
        signal[:: int(RATE / rng.uniform(4, 15))] = 1
        signal = np.convolve(signal, rng.standard_normal(16), "same")
    signal /= np.sqrt(np.mean(signal**2)) + 1e-9
    noise = rng.standard_normal(len(t)) * 10 ** (rng.uniform(-16, 2) / 20)
    return (signal + noise) * 10 ** (rng.uniform(-12, 0) / 20)


def mel_filters() -> np.ndarray:
    """Triangles on the mel scale, [BANDS, WINDOW // 2 + 1]."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2)
    edges = (700 * (10 ** (mel / 2595) - 1))[:, None]
    frequency = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rise = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rise, fall)) + 1e-6


def levels(signal: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Band levels, [FRAMES, BANDS], in steps of 4 dB."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    decibel = 10 * np.log10(power @ filters.T + 1e-3)
    return np.clip(np.round(decibel / 4), 0, 15).astype(np.uint8)


def examples(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    label = rng.integers(0, len(SOUNDS), count)
    filters = mel_filters()
    return np.stack([levels(sound(SOUNDS[k], rng), filters) for k in label]), label


def train(features: torch.Tensor, label: torch.Tensor) -> AudioLSTM:
    network = AudioLSTM()
    steps = EPOCHS * (len(features) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(features)).split(BATCH)[: len(features) // BATCH]:
            loss = functional.cross_entropy(network(features[rows]), label[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}", flush=True)
    return network.eval()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    level, label = examples(TRAIN, rng)
    test_level, test_label = examples(HELD_OUT, rng)
    network = train(torch.from_numpy(to_input(level)), torch.from_numpy(label))
    with torch.no_grad():
        predicted = network(torch.from_numpy(to_input(test_level))).argmax(1).numpy()
    print(f"held-out top-1: {100 * (predicted == test_label).mean():.2f}")
    state = {k: v.half() if v.dim() > 1 else v for k, v in network.state_dict().items()}
    save_file(state, DATA / "audio_lstm.safetensors")
    np.savez_compressed(
        DATA / "audio.npz",
        test_level=test_level,
        test_label=test_label.astype(np.uint8),
        calibration_level=level[:CALIBRATION],
    )


if __name__ == "__main__":
    main()
