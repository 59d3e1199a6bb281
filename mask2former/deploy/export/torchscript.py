"""TorchScript written from the graph that torch.export finds: a trace would take sizes for constants."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any, List, Optional  # noqa: UP035  (TorchScript knows the old names alone)

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

__all__ = ["to_torchscript"]

_INFIX: dict[Callable[..., Any], str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
}
#: Comparisons of sizes, and the checks of torch.export that read them.
_COMPARISONS = {operator.ge, operator.le, operator.gt, operator.lt, operator.eq, operator.ne}
_CHECKS = {
    "aten::_assert_scalar",
    "aten::_assert_tensor_metadata",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
}
#: Where a graph makes tensors: not where it was traced, but where its input is.
_DEVICE = "device_of_input"


def to_torchscript(program: ExportedProgram) -> torch.jit.ScriptModule:
    """The same computation, frozen, with sizes as free as they are in the program.

    Raises:
        ValueError: the program calls something that TorchScript does not know.
    """
    graph_module = program.module(check_guards=False)
    holder = nn.Module()
    arguments, lines = [], []
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            arguments.append(node.name)
        elif node.op == "get_attr":
            tensor = operator.attrgetter(node.target)(graph_module)
            holder.register_buffer(node.name, tensor.detach())
            lines.append(f"{node.name} = self.{node.name}")
        elif node.op == "output":
            lines.append(f"return {', '.join(_text(result) for result in node.args[0])}")
        else:
            lines += _statement(node)
    lines.insert(0, f"{_DEVICE} = {arguments[0]}.device")
    source = "\n".join([f"def forward(self, {', '.join(arguments)}):", *(f"    {line}" for line in lines), ""])
    with warnings.catch_warnings():  # that TorchScript is old, its users know
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.script(holder.eval())
        _define(script, source)
        return torch.jit.freeze(script)


def _define(script: Any, source: str) -> None:
    """TorchScript looks names up where `define` is called."""
    names = (List, Optional, Tensor)  # noqa: UP006
    assert names, "the annotations below use them"
    script.define(source)


def _statement(node: fx.Node) -> list[str]:
    target: Any = node.target
    if target in _COMPARISONS:
        return []
    if target is operator.neg:
        return [f"{node.name} = -{_text(node.args[0])}"]
    if target in _INFIX:
        return [f"{node.name} = {_text(node.args[0])} {_INFIX[target]} {_text(node.args[1])}"]
    if target is operator.getitem:
        return [f"{node.name} = {_text(node.args[0])}[{node.args[1]}]"]
    schema = getattr(target, "_schema", None)
    if schema is None:
        raise ValueError(f"TorchScript knows no {target}, which the exported graph calls")
    if schema.name in _CHECKS:
        return []
    if schema.name == "aten::sym_size":
        return [f"{node.name} = {_text(node.args[0])}.size({node.args[1]})"]
    if schema.name == "aten::item":  # of sizes that are given as a tensor
        return [f"{node.name} = int({_text(node.args[0])})"]
    values = [
        f"torch.jit.annotate(List[Optional[Tensor]], {_text(value)})"
        if "Optional[Tensor]" in str(argument.type) and isinstance(value, (list, tuple))
        else _text(value)
        for value, argument in zip(node.args, schema.arguments, strict=False)
    ]
    values += [f"{name}={_text(value)}" for name, value in node.kwargs.items()]
    namespace, name = schema.name.split("::")
    return [f"{node.name} = torch.ops.{namespace}.{name}({', '.join(values)})"]


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, torch.device):
        return _DEVICE
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(item) for item in value)}]"
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return str(value)
    return repr(value)
