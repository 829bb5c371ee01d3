"""Modified Bessel functions of the first kind.

Enters: the argument of one operator. Leaves: its result, to the precision of float32. Separate because ONNX has none of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch2engine.exporter.decompositions.logarithms import as_floating
from torch2engine.exporter.decompositions.polynomials import chebyshev

__all__ = ["BESSEL"]

# Chebyshev coefficients for exp(-x) I0(x) and exp(-x) I1(x) / x on 0 .. 8, and for both times sqrt(x) above 8.
# Source: Moshier, Cephes Mathematical Library; the terms that float32 can see.
_I0_NEAR = (
    -5.189795601635263e-10,
    2.6598237246823866e-09,
    -1.300025009986248e-08,
    6.046995022541919e-08,
    -2.670793853940612e-07,
    1.1173875391201037e-06,
    -4.4167383584587505e-06,
    1.6448448070728896e-05,
    -5.754195010082104e-05,
    0.00018850288509584165,
    -0.0005763755745385824,
    0.0016394756169413357,
    -0.004324309995050576,
    0.010546460394594998,
    -0.02373741480589947,
    0.04930528423967071,
    -0.09490109704804764,
    0.17162090152220877,
    -0.3046826723431984,
    0.6767952744094761,
)
_I0_FAR = (
    3.3962320257083865e-09,
    2.266668990498178e-08,
    2.0489185894690638e-07,
    2.8913705208347567e-06,
    6.889758346916825e-05,
    0.0033691164782556943,
    0.8044904110141088,
)
_I1_NEAR = (
    -1.8872497517228294e-09,
    9.381537386495773e-09,
    -4.445059128796328e-08,
    2.0032947535521353e-07,
    -8.568720264695455e-07,
    3.4702513081376785e-06,
    -1.3273163656039436e-05,
    4.781565107550054e-05,
    -0.00016176081582589674,
    0.0005122859561685758,
    -0.0015135724506312532,
    0.004156422944312888,
    -0.010564084894626197,
    0.024726449030626516,
    -0.05294598120809499,
    0.1026436586898471,
    -0.17641651835783406,
    0.25258718644363365,
)
_I1_FAR = (
    -5.589743462196584e-10,
    -3.835380385964237e-09,
    -2.6314688468895196e-08,
    -2.512236237870209e-07,
    -3.882564808877691e-06,
    -0.00011058893876262371,
    -0.009761097491361469,
    0.7785762350182801,
)
_FAR = 8.0


def i0e(x: Tensor) -> Tensor:
    """Compute exp(-|x|) I0(x)."""
    size = as_floating(x).abs()
    return _scaled(size, chebyshev(size * 0.5 - 2.0, _I0_NEAR), _I0_FAR)


def i1e(x: Tensor) -> Tensor:
    """Compute exp(-|x|) I1(x)."""
    x = as_floating(x)
    size = x.abs()
    value = _scaled(size, chebyshev(size * 0.5 - 2.0, _I1_NEAR) * size, _I1_FAR)
    return torch.where(x < 0, -value, value)


def _scaled(size: Tensor, near: Tensor, far_coefficients: tuple[float, ...]) -> Tensor:
    far = chebyshev(32.0 / size - 2.0, far_coefficients) / torch.sqrt(size)
    return torch.where(size <= _FAR, near, far)


def i0(x: Tensor) -> Tensor:
    """Compute I0(x)."""
    x = as_floating(x)
    return torch.exp(x.abs()) * i0e(x)


def i1(x: Tensor) -> Tensor:
    """Compute I1(x)."""
    x = as_floating(x)
    return torch.exp(x.abs()) * i1e(x)


BESSEL: Mapping[str, Callable[..., Any]] = {
    "i0": i0,
    "special_i0": i0,
    "special_i0e": i0e,
    "special_i1": i1,
    "special_i1e": i1e,
    "special_modified_bessel_i0": i0,
    "special_modified_bessel_i1": i1,
}
