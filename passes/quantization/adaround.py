"""AdaRound: learn for each weight whether it is rounded up or down.

    W^ = s * clip(floor(W / s) + h(V), n, p),  h(V) = clip(sigmoid(V) * 1.2 - 0.1, 0, 1)
    min over V of  E |(W^ - W) x|^2 + lambda * sum(1 - |2 h(V) - 1|^beta)

V starts where h(V) is the fraction of W / s, so that W^ starts at W. Beta falls from 20 to 2 after
a warm start without the second term, which ends with every h at 0 or 1. The paper takes
minibatches; for a layer's output before its activation function the first term is a quadratic form
in the second moments of the input, so here every step sees all samples, and nothing is drawn by
chance. At 8 bits that matters: the noise of the activations is a hundred times the error of the
weights, and would be most of a minibatch's gradient.

Source: Nagel et al. 2020 (https://arxiv.org/abs/2004.10568), equations 21 to 25; numbers as in
FORMATS B.4, but for lambda, which here is in units of what rounding a weight to nearest costs on
average.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qcompile.compiler.ir.quant import QuantParams, QuantSpec
from qcompile.passes.quantization.gptq import Moments, as_grid, as_matrix, moved_matrix
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.rounding import Rounded

ITERATIONS = 1500
WARM_START = 0.2
BETAS = 20.0, 2.0
REGULARIZATION = 8.0
LEARNING_RATE = 1e-2
STRETCH = -0.1, 1.1


def adaround(
    layer: Layer,
    spec: QuantSpec,
    params: QuantParams,
    seen: Moments,
    *,
    moved: bool = False,
    iterations: int = ITERATIONS,
) -> Rounded:
    """Return the weight with learned rounding.

    Args:
        layer: A 1-d or 2-d convolution or a linear layer.
        spec: Format of the codes.
        params: Scales; kept.
        seen: Of the layer's inputs.
        moved: Whether to start from the weight that GPTAQ would round, not from the layer's own.
        iterations: Steps of Adam.
    """
    matrix = moved_matrix(layer, seen) if moved else as_matrix(layer)
    scale, zero_point = as_grid(layer, spec, params)
    real = matrix / scale + zero_point
    # Codes beyond the range are clipped: what is left there is no rounding.
    real = real.clamp(spec.qmin, spec.qmax)
    up = _learn(real, seen.hessian, scale, iterations) >= 0.5  # the few undecided ones too
    codes = (real.floor() + up).clamp(spec.qmin, spec.qmax)
    return Rounded(spec, codes.reshape(layer.weight.shape).to(spec.dtype), params, "adaround")


def _learn(real: Tensor, hessian: Tensor, scale: Tensor, iterations: int) -> Tensor:
    """Return h(V) after training, the shape of ``real``.

    Args:
        real: The weight in units of its scale, float64 ``[groups, out / groups, columns]``.
        hessian: ``[groups, columns, columns]``.
        scale: float64, the shape of ``real``, or with 1 column for all.
        iterations: Steps.
    """
    row = scale.mean(2, keepdim=True)
    squares, relative = row.float().square().double(), scale / row
    nearest = (real.round() - real) * relative
    error = (squares * nearest * (nearest @ hessian)).sum()
    gain = (squares * real.numel() / error.clamp(min=1e-30)).float()
    hessian32, start = hessian.float(), (real - real.floor()).float()
    relative = relative.float()
    with torch.enable_grad():
        v = _inverse(start).requires_grad_()
        optimizer = torch.optim.Adam([v], lr=LEARNING_RATE)
        for step in range(iterations):
            h = _rectified(v)
            left = (h - start) * relative
            # Half the gradient of a quadratic form is one product: the other factor is held.
            loss = 2 * (gain * left * (left.detach() @ hessian32)).sum()
            if (done := step / iterations) >= WARM_START:
                loss = loss + REGULARIZATION * (1 - (2 * h - 1).abs() ** _beta(done)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return _rectified(v).detach()


def _beta(done: float) -> float:
    first, last = BETAS
    share = (done - WARM_START) / (1 - WARM_START)
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def _rectified(v: Tensor) -> Tensor:
    low, high = STRETCH
    return (v.sigmoid() * (high - low) + low).clamp(0, 1)


def _inverse(h: Tensor) -> Tensor:
    low, high = STRETCH
    return ((h - low) / (high - low)).logit()
