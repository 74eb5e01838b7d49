"""Layers, and which of their units are exchangeable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

from torch import Tensor, nn

from landscape_core.batchnorm import norms
from landscape_core.geometry.permutations import Axis, PermutationSpec

Tags = dict[int, Axis]  # which axes of an activation are units of which group


def batchnorm_buffers(model: nn.Module) -> set[str]:
    """Names of the buffers that hold the statistics of BatchNorm."""
    theirs = {id(buffer) for _, layer in norms(model) for buffer in layer.buffers()}
    every = model.named_buffers(remove_duplicate=False)
    return {name for name, buffer in every if id(buffer) in theirs}


class Groups:
    """Groups of units that grow together as axes turn out to be the same."""

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self.names = {id(tensor): name for name, tensor in tensors}
        self.kept = set(dict(model.named_buffers())) - batchnorm_buffers(model)
        self.sizes: list[int] = []
        self.parent: list[int] = []
        self.frozen: set[int] = set()
        self.axes: dict[str, dict[int, Axis]] = {}

    def new(self, size: int) -> Axis:
        """A group of its own."""
        self.sizes.append(size)
        self.parent.append(len(self.parent))
        return Axis(len(self.parent) - 1)

    def root(self, group: int) -> int:
        """The group that a group has become part of."""
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def freeze(self, axes: Iterable[Axis]) -> None:
        """Keep these units in their places."""
        self.frozen |= {self.root(axis.group) for axis in axes}

    def join(self, a: Axis, b: Axis) -> Axis:
        """Take two axes as the same units; freeze both where they are cut differently."""
        if (a.outer, a.inner) != (b.outer, b.inner):
            self.freeze([a, b])
            return a
        first, second = self.root(a.group), self.root(b.group)
        if first != second:
            self.parent[second] = first
            if second in self.frozen:
                self.frozen.add(first)
        return a

    def own(self, tensor: Tensor | None, dim: int, axis: Axis) -> None:
        """Say that an axis of a parameter or buffer of the model has these units.

        Units of buffers other than BatchNorm's stay in their places: theta does not hold them.
        """
        if tensor is None:
            return
        name = self.names.get(id(tensor))
        if name is None:  # computed from parameters, by weight norm for instance
            self.freeze([axis])
            return
        known = self.axes.setdefault(name, {})
        known[dim] = self.join(known[dim], axis) if dim in known else axis
        if name in self.kept:
            self.freeze([axis])

    def keep(self, module: nn.Module) -> None:
        """Keep the units of a layer's own parameters in their places, here and elsewhere."""
        for parameter in module.parameters():
            name = self.names[id(parameter)]
            self.kept.add(name)
            self.freeze(self.axes.get(name, {}).values())

    def spec(self) -> PermutationSpec:
        """Return the groups that can move, numbered from 0."""
        number: dict[int, int] = {}
        axes: dict[str, dict[int, Axis]] = {}
        for name, dims in self.axes.items():
            for dim, axis in dims.items():
                root = self.root(axis.group)
                if root in self.frozen or self.sizes[root] < 2:
                    continue
                group = number.setdefault(root, len(number))
                axes.setdefault(name, {})[dim] = Axis(group, axis.outer, axis.inner)
        return PermutationSpec({n: self.sizes[root] for root, n in number.items()}, axes)


@singledispatch
def layer_units(module: nn.Module, groups: Groups, x: Tensor, tags: Tags) -> Tags | None:
    """Tags of what a layer returns for activations x with `tags`; None where it is not known.

    Says on the way which axes of its parameters are units of which group.
    """
    return None


def _same(module: nn.Module, groups: Groups, x: Tensor, tags: Tags) -> Tags:
    return tags


def _pooled(module: nn.Module, groups: Groups, x: Tensor, tags: Tags) -> Tags | None:
    if x.ndim == 2:  # no batch, to the layer: it pools over what may be units
        return None
    return channels_only(groups, tags)


for kind in (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
):  # fmt: skip
    layer_units.register(kind, _same)
for pool in (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
):  # fmt: skip
    layer_units.register(pool, _pooled)


@layer_units.register(nn.Flatten)
def _flatten(module: nn.Flatten, groups: Groups, x: Tensor, tags: Tags) -> Tags:
    return reshaped(groups, x.shape, module(x).shape, tags)


@layer_units.register(nn.Linear)
def _linear(module: nn.Linear, groups: Groups, x: Tensor, tags: Tags) -> Tags:
    last, units = x.ndim - 1, groups.new(module.out_features)
    if last in tags:
        groups.own(module.weight, 1, tags[last])
    groups.own(module.weight, 0, units)
    groups.own(module.bias, 0, units)
    return {**tags, last: units}


@layer_units.register(nn.Conv1d)
@layer_units.register(nn.Conv2d)
@layer_units.register(nn.Conv3d)
def _convolution(module: nn.Conv2d, groups: Groups, x: Tensor, tags: Tags) -> Tags | None:
    tags = channels_only(groups, tags)
    if 1 in tags and module.groups == module.in_channels == module.out_channels:
        groups.own(module.weight, 0, tags[1])  # each channel for itself
        groups.own(module.bias, 0, tags[1])
        return tags
    if module.groups != 1:
        return None
    if 1 in tags:
        groups.own(module.weight, 1, tags[1])
    units = groups.new(module.out_channels)
    groups.own(module.weight, 0, units)
    groups.own(module.bias, 0, units)
    return {1: units}


@layer_units.register(nn.modules.batchnorm._BatchNorm)
@layer_units.register(nn.modules.instancenorm._InstanceNorm)
def _norm(
    module: nn.modules.batchnorm._BatchNorm, groups: Groups, x: Tensor, tags: Tags
) -> Tags:
    if 1 in tags:
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            groups.own(tensor, 0, tags[1])
    return channels_only(groups, tags)


@layer_units.register(nn.LayerNorm)
@layer_units.register(nn.RMSNorm)
def _layer_norm(module: nn.LayerNorm, groups: Groups, x: Tensor, tags: Tags) -> Tags:
    first = x.ndim - len(module.normalized_shape)
    for dim, axis in tags.items():
        if dim >= first:
            groups.own(module.weight, dim - first, axis)
            groups.own(getattr(module, "bias", None), dim - first, axis)
    return tags


@layer_units.register(nn.Embedding)
def _embedding(module: nn.Embedding, groups: Groups, x: Tensor, tags: Tags) -> Tags:
    units = groups.new(module.embedding_dim)
    groups.own(module.weight, 1, units)
    return {x.ndim: units}


@layer_units.register(nn.TransformerEncoder)
def _encoder(module: nn.TransformerEncoder, groups: Groups, x: Tensor, tags: Tags) -> Any:
    for layer in module.layers:
        tags = _encoder_layer(layer, groups, x, tags)
    return tags if module.norm is None else layer_units(module.norm, groups, x, tags)


@layer_units.register(nn.TransformerEncoderLayer)
def _encoder_layer(
    module: nn.TransformerEncoderLayer, groups: Groups, x: Tensor, tags: Tags
) -> Tags:
    last = x.ndim - 1
    groups.freeze(axis for dim, axis in tags.items() if dim != last)
    own = {dim: axis for dim, axis in tags.items() if dim == last}
    mixed = attention_units(module.self_attn, groups, last, own.get(last))
    through = _linear(module.linear2, groups, x, _linear(module.linear1, groups, x, own))
    for other in (mixed, through):  # both are added to x
        if last in own:
            groups.join(own[last], other[last])
        else:
            groups.freeze(other.values())
    for norm in (module.norm1, module.norm2):
        if layer_units(norm, groups, x, own) is None:
            groups.keep(norm)
            groups.freeze(own.values())
    return own


def attention_units(
    module: nn.MultiheadAttention, groups: Groups, last: int, units: Axis | None
) -> Tags:
    """Tags of what attention returns, for inputs whose axis `last` has `units`.

    Heads can change places; what is inside a head cannot.
    """
    heads, out = groups.new(module.num_heads), groups.new(module.embed_dim)
    stacked = Axis(heads.group, outer=3, inner=module.head_dim)
    if module.in_proj_weight is None or module.bias_k is not None:  # projections of their own
        groups.freeze([heads] if units is None else [heads, units])
    else:
        if units is not None:
            groups.own(module.in_proj_weight, 1, units)
        groups.own(module.in_proj_weight, 0, stacked)
        groups.own(module.in_proj_bias, 0, stacked)
    groups.own(module.out_proj.weight, 1, Axis(heads.group, inner=module.head_dim))
    groups.own(module.out_proj.weight, 0, out)
    groups.own(module.out_proj.bias, 0, out)
    return {last: out}


def channels_only(groups: Groups, tags: Tags) -> Tags:
    """Tags of the channels, axis 1; what is on other axes must stay in its place."""
    groups.freeze(axis for dim, axis in tags.items() if dim != 1)
    return {1: tags[1]} if 1 in tags else {}


def reshaped(groups: Groups, old: Sequence[int], new: Sequence[int], tags: Tags) -> Tags:
    """Axes that merge carry their units with them; axes that are cut do not."""
    result: Tags = {}
    for olds, place in merged_axes(old, new):
        tagged = [dim for dim in olds if dim in tags]
        if place is None or len(tagged) > 1:
            groups.freeze(tags[dim] for dim in tagged)
        elif tagged:
            dim, axis = tagged[0], tags[tagged[0]]
            outer = math.prod(old[d] for d in olds if d < dim)
            inner = math.prod(old[d] for d in olds if d > dim)
            result[place] = Axis(axis.group, axis.outer * outer, axis.inner * inner)
    return result


def merged_axes(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], int | None]]:
    """Say which old axes a reshape merges into which new one; None where it cuts axes.

    >>> merged_axes((8, 3, 4, 4), (8, 48))
    [([0], 0), ([1, 2, 3], 1)]
    >>> merged_axes((1, 3, 4, 4), (1, 48))  # a batch of one example is no part of a channel
    [([0], 0), ([1, 2, 3], 1)]
    """
    result: list[tuple[list[int], int | None]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds: list[int] = []
        news: list[int] = []
        a = b = 1
        while not olds or not news or a != b:
            if ((not olds or (news and a < b)) and i < len(old)) or j >= len(new):
                if i >= len(old):
                    break
                a, i = a * old[i], i + 1
                olds.append(i - 1)
            else:
                b, j = b * new[j], j + 1
                news.append(j - 1)
        result.append((olds, news[0] if len(news) == 1 and a == b else None))
    return result
