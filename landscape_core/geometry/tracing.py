"""Finding the exchangeable units of a model by following its activations."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from landscape_core.geometry.permutations import Axis, PermutationSpec, by_unit
from landscape_core.geometry.units import (
    Groups,
    Tags,
    attention_units,
    channels_only,
    layer_units,
    reshaped,
)

ENTRYWISE: set[Any] = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh,
    F.hardswish, F.dropout, torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.abs,
    torch.square, "relu", "relu_", "tanh", "sigmoid", "square", "abs", "exp", "contiguous",
    "clone", "float", "double", "to",
}  # fmt: skip
TOGETHER: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, "add", "add_", "sub", "mul", "mul_", "div",
}  # fmt: skip
REDUCED: set[Any] = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
RESHAPED: set[Any] = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}
SPATIAL: set[Any] = {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
}  # fmt: skip
SOFTMAX: set[Any] = {F.softmax, F.log_softmax, torch.softmax, "softmax"}
TRANSPOSED: set[Any] = {torch.transpose, "transpose"}
# Keywords that are understood; torch takes NumPy's names too.
OPERANDS = {"input", "other", "x", "a", "x1", "x2", "alpha", "rounding_mode"}
REDUCTION = {"input", "x", "a", "dim", "axis", "keepdim", "keepdims", "dtype"}
ATTENTION = {
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "is_causal",
}  # fmt: skip


def trace_permutations(model: nn.Module, *inputs: Any, **keywords: Any) -> PermutationSpec:
    """Find the groups of exchangeable units of a model, from one pass of `inputs`.

    Follows linear layers, convolutions, normalizations, embeddings, attention and
    ``nn.TransformerEncoderLayer``, activations, pooling, flattening and residual sums. What it
    does not know keeps the units around it in their places, which is always right. So do
    buffers other than BatchNorm's statistics, which are no part of theta.

    Parameters
    ----------
    model : nn.Module
        Its forward pass must be traceable by ``torch.fx``.
    inputs, keywords
        Of the model, a batch of at least one example.

    Returns
    -------
    PermutationSpec

    Raises
    ------
    ValueError
        If the forward pass cannot be traced; give a specification of your own then.
    """
    return _follow(model, inputs, keywords).groups.spec()


def unit_activations(
    model: nn.Module, spec: PermutationSpec, *inputs: Any, **keywords: Any
) -> dict[int, Tensor]:
    """Activations of the units of each group, (units, samples), where they are made.

    Samples are examples times whatever else a unit has: pixels, tokens, places in the network
    where a residual sum takes the units up again.
    """
    tracer = _follow(model, inputs, keywords, keep=True)
    number: dict[int, int] = {}
    for name, axes in spec.axes.items():
        for dim, axis in axes.items():
            known = tracer.groups.axes.get(name, {}).get(dim)
            if known is not None:  # a specification of one's own may know more
                number[tracer.groups.root(known.group)] = axis.group
    rows: dict[int, list[Tensor]] = {}
    for value, dim, axis in tracer.seen:
        group = number.get(tracer.groups.root(axis.group))
        if group is not None:
            rows.setdefault(group, []).append(by_unit(value, dim, axis, spec.sizes[group]))
    return {group: torch.cat(parts, dim=1) for group, parts in rows.items()}


def _follow(
    model: nn.Module, inputs: Any, keywords: dict[str, Any], keep: bool = False
) -> _Tracer:
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        graph = _traced(model, inputs, keywords)
        tracer = _Tracer(graph, model, keep)
        with torch.no_grad():
            tracer.run(*_values(graph, model, inputs, keywords))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training
    return tracer


def _traced(model: nn.Module, inputs: Any, keywords: dict[str, Any]) -> fx.GraphModule:
    """The graph of the call; arguments that it leaves at None, say, are constants of it."""
    given = [*inspect.signature(model.forward).parameters][: len(inputs)]
    left = {
        name: default
        for name, default in _defaults(model).items()
        if name not in keywords and name not in given
    }
    try:
        return fx.symbolic_trace(model, concrete_args=left)
    except Exception as error:
        raise ValueError(
            "the model's forward pass cannot be traced by torch.fx "
            f"({str(error).splitlines()[0]}): give a PermutationSpec of your own"
        ) from error


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Arguments of the forward pass that have a plain value where they are not given."""
    found = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        default, kind = parameter.default, parameter.kind
        if kind is parameter.POSITIONAL_OR_KEYWORD and (
            default is None or isinstance(default, bool | int | float | str)
        ):
            found[name] = default
    return found


def _values(
    graph: fx.GraphModule, model: nn.Module, inputs: Any, keywords: dict[str, Any]
) -> list[Any]:
    """What each placeholder of the graph is to hold, in their order."""
    values, defaults = list(inputs), _defaults(model)
    names = [*inspect.signature(model.forward).parameters]
    for node in [n for n in graph.graph.nodes if n.op == "placeholder"][len(inputs) :]:
        name = names[len(values)] if len(values) < len(names) else str(node.target)
        if name in keywords:
            values.append(keywords[name])
        elif name in defaults:
            values.append(defaults[name])
        elif node.args:
            values.append(node.args[0])
        else:
            break
    return values


@dataclass(frozen=True)
class _Call:
    """What a node is called with; `operands` are the values of other nodes in it."""

    args: Sequence[Any]
    keywords: Mapping[str, Any]
    operands: list[Any]


class _Tracer(fx.Interpreter):
    """Runs a traced model, and knows of every activation which axes are units."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module, keep: bool) -> None:
        super().__init__(graph)
        self.keep = keep
        self.seen: list[tuple[Tensor, int, Axis]] = []
        self.groups = Groups(model)
        self.tags: dict[fx.Node, Any] = {}
        self.plain: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and tag what it returns."""
        args, keywords = self.fetch_args_kwargs_from_env(n)
        value = super().run_node(n)
        nodes = [node for node in n.all_input_nodes if node not in self.plain]
        before = [self.tags[node] for node in nodes]
        operands = [self.env[node] for node in nodes]  # by keyword or not
        tags = self._tags(n, value, _Call(args, keywords, operands), before)
        if tags is None:  # not known: nothing before it may move
            self._freeze(before)
            tags = {}
        self.tags[n] = tags
        if not isinstance(value, Tensor | tuple):
            self.plain.add(n)  # sizes and other numbers
        made = n.op == "call_module" or n.target in ENTRYWISE
        if self.keep and made and isinstance(value, Tensor):
            value_now = value.clone()  # what follows may write to it
            self.seen += [(value_now, dim, axis) for dim, axis in tags.items()]
        return value

    def _freeze(self, tags: Any) -> None:
        for each in tags:
            if isinstance(each, dict):
                self.groups.freeze(each.values())
            else:
                self._freeze(each)

    def _tags(self, n: fx.Node, value: Any, call: _Call, before: list[Any]) -> Any:
        """Tags of the value of a node; None where it is not known what it does."""
        if n.op == "placeholder":
            return {}
        if n.op == "get_attr":
            return self._of_parameter(value)
        if n.op == "call_module":
            return self._of_module(self.fetch_attr(str(n.target)), call, before)
        if n.op not in ("call_function", "call_method"):
            return None
        if n.target is operator.getitem and before and isinstance(before[0], list):
            return before[0][call.args[1]] if isinstance(call.args[1], int) else None
        if not isinstance(value, Tensor) or any(isinstance(tags, list) for tags in before):
            return {} if n.target in (getattr, "size", "dim") else None
        if n.target in TOGETHER:
            return self._together(call, value, before)
        if n.target == "to" and len(before) == 2:  # as another tensor
            return before[0]
        if len(before) != 1 or not isinstance(call.operands[0], Tensor):
            return None
        return self._of_function(n.target, call, value, before[0])

    def _of_parameter(self, value: Any) -> Tags | None:
        if id(value) not in self.groups.names:
            return {}
        tags = {dim: self.groups.new(size) for dim, size in enumerate(value.shape) if size > 1}
        for dim, axis in tags.items():
            self.groups.own(value, dim, axis)
        return tags

    def _together(self, call: _Call, value: Tensor, before: list[Any]) -> Tags | None:
        """Operands of a sum or product share the units that stand at the same place."""
        if not call.keywords.keys() <= OPERANDS:
            return None
        shared: Tags = {}
        operands = [
            (tags, operand)
            for tags, operand in zip(before, call.operands, strict=True)
            if isinstance(operand, Tensor)
        ]
        for dim in range(value.ndim):
            found = []
            for tags, arg in operands:
                own = dim - (value.ndim - arg.ndim)
                if own < 0 or arg.shape[own] == 1:
                    continue  # broadcast: the same for all units
                found.append(tags.get(own))
            known = [axis for axis in found if axis is not None]
            if len(known) < len(found):
                self.groups.freeze(known)
            elif known:
                shared[dim] = known[0]
                for other in known[1:]:
                    self.groups.join(known[0], other)
        return shared

    def _of_function(self, target: Any, call: _Call, value: Tensor, tags: Tags) -> Tags | None:
        x: Tensor = call.operands[0]
        if target in SPATIAL:
            return channels_only(self.groups, tags)
        if target in RESHAPED:
            return reshaped(self.groups, x.shape, value.shape, tags)
        if target in REDUCED:
            return self._reduced(call, x, value, tags)
        if target in {torch.permute, "permute"} | TRANSPOSED:
            order = _order(target, call, x.ndim)
            if order is None:
                return None
            return {new: tags[old] for new, old in enumerate(order) if old in tags}
        if target in ENTRYWISE or target in SOFTMAX:
            return tags
        return None

    def _reduced(self, call: _Call, x: Tensor, value: Tensor, tags: Tags) -> Tags | None:
        if not call.keywords.keys() <= REDUCTION:
            return None
        named = call.keywords.get("dim", call.keywords.get("axis"))
        dims: Any = call.args[1] if len(call.args) > 1 else named
        if dims is None or dims in ((), []):
            return {}
        gone = {int(d) % x.ndim for d in (dims if isinstance(dims, tuple | list) else [dims])}
        if value.ndim == x.ndim:
            return {dim: axis for dim, axis in tags.items() if dim not in gone}
        left = [dim for dim in range(x.ndim) if dim not in gone]
        return {new: tags[old] for new, old in enumerate(left) if old in tags}

    def _of_module(self, module: nn.Module, call: _Call, before: list[Any]) -> Any:
        if isinstance(module, nn.MultiheadAttention):
            return self._attention(module, call, before)
        x = call.operands[0] if len(before) == 1 and not isinstance(before[0], list) else None
        known = (
            layer_units(module, self.groups, x, before[0]) if isinstance(x, Tensor) else None
        )
        if known is None:
            self.groups.keep(module)
        return known

    def _attention(self, module: nn.MultiheadAttention, call: _Call, before: list[Any]) -> Any:
        if not before or any(isinstance(tags, list) for tags in before):
            return None
        if len(call.args) > 6 or not call.keywords.keys() <= ATTENTION:  # weights by head
            return None
        masks = [*call.args[3:], call.keywords.get("attn_mask")]
        masks.append(call.keywords.get("key_padding_mask"))
        for tags, operand in zip(before, call.operands, strict=True):
            if tags and any(operand is mask for mask in masks):
                return None
        query = call.args[0] if call.args else call.keywords["query"]
        last = query.ndim - 1
        # Positions must stay: keys and queries are matched by place.
        self.groups.freeze(axis for tags in before for dim, axis in tags.items() if dim != last)
        inputs = [tags.get(last) for tags in before]
        known = [axis for axis in inputs if axis is not None]
        if len(known) < len(inputs):
            self.groups.freeze(known)
            known = []
        for other in known[1:]:
            self.groups.join(known[0], other)
        units = known[0] if known else None
        return [attention_units(module, self.groups, last, units), {}]


def _order(target: Any, call: _Call, ndim: int) -> list[int] | None:
    """Old places of the new axes; None where they are named in a way that is not known."""
    names = ("dim0", "dim1") if target in TRANSPOSED else ("dims",)
    given = list(call.args[1:])
    given += [call.keywords[name] for name in names if name in call.keywords]
    if target in TRANSPOSED:
        if len(given) != 2:
            return None
        a, b = (int(d) % ndim for d in given)
        order = list(range(ndim))
        order[a], order[b] = b, a
        return order
    dims = given[0] if given and isinstance(given[0], tuple | list) else given
    return [int(d) % ndim for d in dims] if len(dims) == ndim else None
