"""Train examples/resnet.py on scikit-learn's digits; write its weights and its images.

Run it beside examples/: `python -m examples.train.train_resnet` (needs scikit-learn; 15 seconds).
"""

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional

from examples.resnet import DATA, ResNet, to_input

EPOCHS, BATCH, HELD_OUT, CALIBRATION = 30, 64, 450, 128


def augment(image: torch.Tensor) -> torch.Tensor:
    """Shift the whole batch by up to one pixel each way."""
    dy, dx = (int(v) for v in torch.randint(0, 3, (2,)))
    return functional.pad(image, (1, 1, 1, 1))[:, :, dy : dy + 8, dx : dx + 8]


def train(image: torch.Tensor, label: torch.Tensor) -> ResNet:
    network = ResNet()
    steps = EPOCHS * (len(image) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(image)).split(BATCH)[: len(image) // BATCH]:
            logits = network(augment(image[rows]))
            loss = functional.cross_entropy(logits, label[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    image, label = digits.images[order].astype(np.uint8), digits.target[order]
    held_out, rest = slice(0, HELD_OUT), slice(HELD_OUT, None)
    network = train(torch.from_numpy(to_input(image[rest])), torch.from_numpy(label[rest]))
    with torch.no_grad():
        predicted = network(torch.from_numpy(to_input(image[held_out]))).argmax(1).numpy()
    print(f"held-out top-1: {100 * (predicted == label[held_out]).mean():.2f}")
    state = {k: v.half() if v.dim() > 1 else v for k, v in network.state_dict().items()}
    save_file(state, DATA / "resnet_digits.safetensors")
    np.savez_compressed(
        DATA / "digits.npz",
        test_image=image[held_out],
        test_label=label[held_out].astype(np.uint8),
        calibration_image=image[rest][:CALIBRATION],
    )


if __name__ == "__main__":
    main()
