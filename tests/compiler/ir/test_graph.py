"""Graph: what ``trace`` gives, how it runs, is copied, changed and exported again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import from_exported, trace
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import DynamicDim, Graph, is_dynamic
from qcompile.compiler.ir.ops import aten

BATCH = torch.export.Dim("batch", min=1, max=64)


class Net(nn.Module):
    """Everything that has two modes: batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.drop(F.relu(self.norm(self.conv(image))))
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


class Returns(nn.Module):
    """Applies a function of two inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return self.function(left, right)


def traced(function: Any, **options: Any) -> Graph:
    inputs = {"left": torch.randn(2, 3), "right": torch.randn(2, 3)}
    return trace(Returns(function), inputs, **options)


def test_run_equals_pytorch() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    with torch.no_grad():
        expected = net(x)
    outputs = graph.run({"image": x})
    assert list(outputs) == list(graph.outputs) == ["output"]
    assert not outputs["output"].requires_grad
    torch.testing.assert_close(outputs["output"], expected)


@pytest.mark.parametrize("as_inputs", [lambda x: x, lambda x: [x], lambda x: {"image": x}])
def test_inputs_are_named_after_forwards_arguments(as_inputs: Any) -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = trace(Net(), as_inputs(x))
    assert list(graph.inputs) == ["image"]
    assert torch.equal(graph.inputs["image"], x)


def test_an_input_that_nothing_reads_is_kept() -> None:
    graph = traced(lambda left, right: left + 1)
    assert list(graph.inputs) == ["left", "right"]
    assert list(graph.run(graph.inputs)) == ["output"]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda a, b: a + b, ["output"]),
        (lambda a, b: (a + b, a * b), ["output_0", "output_1"]),
        (lambda a, b: [a + b], ["output"]),
        (lambda a, b: {"sum": a + b, "product": a * b}, ["sum", "product"]),
        (lambda a, b: {"sum": a + b, "nothing": None}, ["sum"]),
        (lambda a, b: {"deep": {"sum": a + b}}, ["deep_sum"]),
        (lambda a, b: {"levels": [a + b, a * b]}, ["levels_0", "levels_1"]),
        (lambda a, b: (a + b, {"product": a * b}), ["output_0", "output_1_product"]),
        (lambda a, b: (a + b, (a * b, a)), ["output_0", "output_1_0", "output_1_1"]),
    ],
)
def test_outputs_are_named(function: Any, names: list[str]) -> None:
    graph = traced(function)
    assert list(graph.outputs) == names
    leaves = torch.utils._pytree.tree_leaves(function(*graph.inputs.values()))
    expected = [leaf for leaf in leaves if leaf is not None]
    assert len(expected) == len(names)
    torch.testing.assert_close(list(graph.run(graph.inputs).values()), expected)


def test_two_outputs_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="two outputs are called levels_0; give their keys other"):
        traced(lambda a, b: {"levels": [a + b], "levels_0": a * b})


def test_an_output_may_be_returned_twice_and_be_an_input() -> None:
    graph = traced(lambda a, b: (a, a + b, a))
    outputs = graph.run(graph.inputs)
    assert torch.equal(outputs["output_0"], graph.inputs["left"])
    assert torch.equal(outputs["output_2"], graph.inputs["left"])


@pytest.mark.parametrize("shapes", [({0: BATCH},), {"image": {0: BATCH}}])
@pytest.mark.parametrize("batch", [1, 2])
def test_free_batch_is_kept(shapes: Any, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8)
    net = Net().eval()
    graph = trace(net, x, shapes)
    assert graph.dynamic == {"image": {0: DynamicDim("batch", 1, 64)}}
    assert graph.inputs["image"].shape[0] == 2, "torch.export would fix an example of size 1"
    (fc,) = graph.calls(aten.linear.default)
    assert is_dynamic(fc.meta["val"].shape[0])
    assert not is_dynamic(fc.meta["val"].shape[1])
    for size in (1, 5):
        other = torch.randn(size, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(graph.run({"image": other})["output"], net(other))


def test_batch_of_one_stays_without_free_axes() -> None:
    assert trace(Net(), torch.randn(1, 3, 8, 8)).inputs["image"].shape[0] == 1


def test_axes_of_one_name_are_one() -> None:
    graph = traced(lambda a, b: a + b, dynamic_shapes={"left": {0: BATCH}, "right": {0: BATCH}})
    assert {d[0].name for d in graph.dynamic.values()} == {"batch"}
    assert list(graph.dynamic) == ["left", "right"]


def test_the_users_module_is_left_as_it_was() -> None:
    net = Net()
    net.train()
    net.norm.eval()  # some people freeze it
    net.fc.weight.requires_grad_(False)
    flags = [m.training for m in net.modules()]
    grads = [p.requires_grad for p in net.parameters()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    graph = trace(net, torch.randn(2, 3, 8, 8))
    for name in graph.weights:
        graph.weights[name] = torch.zeros_like(graph.weights[name])
    assert [m.training for m in net.modules()] == flags
    assert [p.requires_grad for p in net.parameters()] == grads
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


def test_training_flags_are_restored_after_an_error() -> None:
    net = Net()
    with pytest.raises(Exception, match="does not run"):
        trace(net, torch.randn(2, 5, 8, 8))
    assert all(m.training for m in net.modules())


def test_copy_shares_tensors_and_nothing_else() -> None:
    graph = trace(Net(), torch.randn(2, 3, 8, 8))
    before, expected = graph.to_text(), graph.run(graph.inputs)
    twin = graph.copy()
    assert twin.to_text() == before
    for name in graph.weights:
        assert twin.weights[name].data_ptr() == graph.weights[name].data_ptr()
    (fc,) = twin.calls(aten.linear.default)
    twin.set_constant(fc.args[1], torch.zeros(2, 4))
    (relu,) = twin.calls(aten.relu.default)
    twin.replace(relu, relu.args[0])
    twin.inputs["image"] = torch.zeros(2, 3, 8, 8)
    assert twin.to_text() != before
    assert graph.to_text() == before
    torch.testing.assert_close(graph.run(graph.inputs), expected, rtol=0, atol=0)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.a(x))
        return result


def test_set_constant_splits_a_constant_of_two_nodes() -> None:
    graph = trace(Tied(), torch.randn(2, 4))
    first, second = graph.calls(aten.linear.default)
    shared = second.args[1]
    assert first.args[1] is shared
    with graph.before(second):  # give the second layer a node of its own, of the same tensor
        own = graph.module.graph.create_node("get_attr", shared.target)
    second.args = (second.args[0], own, *second.args[2:])
    old = graph.constant(shared).clone()
    graph.set_constant(own, torch.zeros(4, 4))
    assert own.target != shared.target
    assert torch.equal(graph.constant(shared), old)
    assert torch.equal(graph.constant(own), torch.zeros(4, 4))
    assert own.meta["val"].shape == (4, 4)


def test_set_constant_replaces_a_constant_of_one_node() -> None:
    graph = trace(Tied(), torch.randn(2, 4))
    names = list(graph.weights)
    bias = graph.calls(aten.linear.default)[0].args[2]
    graph.set_constant(bias, torch.ones(4))
    assert list(graph.weights) == names
    assert torch.equal(graph.weights["a.bias"], torch.ones(4))


def test_added_nodes_have_shapes_and_fresh_names() -> None:
    graph = trace(Net(), torch.randn(2, 3, 8, 8), ({0: BATCH},))
    (relu,) = graph.calls(aten.relu.default)
    with graph.after(relu):
        constant = graph.add_constant("conv.weight", torch.full((1, 4, 1, 1), 2.0))
        call = graph.add_call(aten.mul.Tensor, relu, constant)
    assert constant.target == "conv.weight_2"
    assert str(call.meta["val"].shape) == str(relu.meta["val"].shape)
    expected = graph.run(graph.inputs)["output"]
    (mean,) = graph.calls(aten.mean.dim)
    mean.args = (call, *mean.args[1:])
    assert not torch.allclose(graph.run(graph.inputs)["output"], expected)


def test_erase_unused_counts_what_it_erases() -> None:
    graph = trace(Net(), torch.randn(2, 3, 8, 8))
    (relu,) = graph.calls(aten.relu.default)
    with graph.after(relu):
        graph.add_call(aten.neg.default, graph.add_call(aten.exp.default, relu))
    assert graph.erase_unused() == 2
    assert graph.erase_unused() == 0


@pytest.mark.parametrize("shapes", [None, ({0: BATCH},)])
def test_exported_round_trip(shapes: Any) -> None:
    graph = trace(Net(), torch.randn(2, 3, 8, 8), shapes)
    again = from_exported(graph.exported())
    assert list(again.inputs) == list(graph.inputs)
    assert [len(d) for d in again.dynamic.values()] == [len(d) for d in graph.dynamic.values()]
    calls = [[n.target for n in g.nodes if n.op == "call_function"] for g in (graph, again)]
    assert calls[0] == calls[1]
    x = torch.randn(2 if shapes is None else 3, 3, 8, 8)
    assert torch.equal(again.run({"image": x})["output"], graph.run({"image": x})["output"])
