"""Convolutions whose number of groups is a symbolic size, as matrix products.

Enters: the arguments of a convolution of `torch.nn.functional`. Leaves: its result. Separate because ONNX's Conv has a
fixed number of groups, and models that make one kernel for each sample (StyleGAN2, hypernetworks) use the batch as it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import SymInt, Tensor
from torch.nn import functional

__all__ = ["conv1d", "conv2d", "conv_transpose2d"]

_UNKNOWN: Any = NotImplemented


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Tensor:
    """`conv2d` of each group by a product with the image's patches.

    Args:
        x: [batch, groups * inputs, height, width].
        weight: [groups * outputs, inputs, kernel height, kernel width].
        bias: [groups * outputs].
        stride: a number or two.
        padding: a number or two; "same" and "valid" are not for this form.
        dilation: a number or two.
        groups: a symbolic size.

    Returns:
        [batch, groups * outputs, height, width]; NotImplemented for what has no such form.
    """
    if isinstance(padding, str) or x.dim() != 4 or not _is_symbolic(groups):
        return _UNKNOWN
    batch, channels, height, width = x.shape
    inputs: Any = channels // groups
    kernel: Any = list(weight.shape[2:])
    patches = functional.unfold(
        x.reshape(batch * groups, inputs, height, width),
        kernel,
        dilation=dilation,
        padding=padding,
        stride=stride,
    )
    outputs: Any = weight.shape[0] // groups
    kernels = weight.reshape(groups, outputs, -1)
    products = kernels @ patches.reshape(batch, groups, -1, patches.shape[-1])
    sizes = [
        (size + 2 * pad - step * (window - 1) - 1) // jump + 1
        for size, pad, step, window, jump in zip(
            (height, width), _pair(padding), _pair(dilation), kernel, _pair(stride), strict=True
        )
    ]
    return _add(products.reshape(batch, groups * outputs, *sizes), bias)


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Tensor:
    """`conv1d` as the `conv2d` of an image of height 1; shapes as there, without the height."""
    if isinstance(padding, str) or x.dim() != 3 or not _is_symbolic(groups):
        return _UNKNOWN
    image = conv2d(
        x.unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        (1, _last(stride)),
        (0, _last(padding)),
        (1, _last(dilation)),
        groups,
    )
    return image.squeeze(2)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> Tensor:
    """`conv_transpose2d` of each group by a product whose patches are added up.

    Args:
        x: [batch, groups * inputs, height, width].
        weight: [groups * inputs, outputs, kernel height, kernel width].
        bias: [groups * outputs].
        stride: a number or two.
        padding: a number or two.
        output_padding: a number or two.
        groups: a symbolic size.
        dilation: a number or two.

    Returns:
        [batch, groups * outputs, height, width]; NotImplemented for what has no such form.
    """
    if x.dim() != 4 or not _is_symbolic(groups):
        return _UNKNOWN
    batch, channels, height, width = x.shape
    inputs: Any = channels // groups
    outputs = weight.shape[1]
    kernel: Any = list(weight.shape[2:])
    kernels = weight.reshape(groups, inputs, -1).transpose(1, 2)
    patches = kernels @ x.reshape(batch, groups, inputs, height * width)
    sizes = [
        (size - 1) * jump - 2 * pad + step * (window - 1) + more + 1
        for size, jump, pad, step, window, more in zip(
            (height, width),
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            kernel,
            _pair(output_padding),
            strict=True,
        )
    ]
    image = functional.fold(
        patches.reshape(batch * groups, -1, height * width),
        cast("Any", sizes),
        kernel,
        dilation=dilation,
        padding=padding,
        stride=stride,
    )
    return _add(image.reshape(batch, groups * outputs, *sizes), bias)


def _is_symbolic(groups: Any) -> bool:
    return isinstance(groups, SymInt)


def _add(image: Tensor, bias: Tensor | None) -> Tensor:
    return image if bias is None else image + bias.reshape(1, -1, 1, 1)


def _pair(value: Any) -> Sequence[Any]:
    """The two numbers of an option that may be one."""
    if isinstance(value, (tuple, list)):
        numbers = cast("Sequence[Any]", value)
        return numbers if len(numbers) == 2 else [numbers[0], numbers[0]]
    return [value, value]


def _last(value: Any) -> Any:
    return _pair(value)[1]
