"""The theory of kernels once more, in NumPy, on a rule of its own: Gauss-Legendre with 400 nodes between kinks."""

import math
from itertools import pairwise

import numpy as np

_erf = np.vectorize(math.erf)


def _sigmoid(z):
    return 0.5 * (1 + np.tanh(z / 2))


def _normal(z):
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _cdf(z):
    return 0.5 * (1 + _erf(z / math.sqrt(2)))


def _gelu(z):
    return z * _cdf(z), _cdf(z) + z * _normal(z), (2 - z * z) * _normal(z)


def _silu(z):
    s = _sigmoid(z)
    d = s * (1 - s)
    return z * s, s + z * d, 2 * d + z * d * (1 - 2 * s)


def _elu(z):
    e = np.exp(np.minimum(z, 0))
    return np.where(z > 0, z, e - 1), np.where(z > 0, 1, e), np.where(z > 0, 0, e)


def _tanh(z):
    t = np.tanh(z)
    return t, 1 - t * t, -2 * t * (1 - t * t)


def _softplus(z):
    s = _sigmoid(z)
    return np.logaddexp(z, 0), s, s * (1 - s)


# φ, φ', φ'' and the kinks of each, written out.
FUNCTIONS = {
    "tanh": (_tanh, []),
    "softplus": (_softplus, []),
    "elu": (_elu, [0.0]),
    "silu": (_silu, []),
    "swish": (_silu, []),
    "gelu": (_gelu, []),
    "sigmoid": (lambda z: (s := _sigmoid(z), s * (1 - s), s * (1 - s) * (1 - 2 * s)), []),
    "erf": (
        lambda z: (_erf(z), 2 / math.sqrt(math.pi) * np.exp(-z * z), -4 * z / math.sqrt(math.pi) * np.exp(-z * z)),
        [],
    ),
    "atan": (lambda z: (np.arctan(z), 1 / (1 + z * z), -2 * z / (1 + z * z) ** 2), []),
    "asinh": (lambda z: (np.arcsinh(z), (1 + z * z) ** -0.5, -z * (1 + z * z) ** -1.5), []),
    "bentid": (
        lambda z: (z + (np.sqrt(z * z + 1) - 1) / 2, 1 + z / (2 * np.sqrt(z * z + 1)), (z * z + 1) ** -1.5 / 2),
        [],
    ),
    "softsign": (
        lambda z: (z / (1 + abs(z)), (1 + abs(z)) ** -2.0, -2 * np.sign(z) * (1 + abs(z)) ** -3.0),
        [0.0],
    ),
    "relu": (lambda z: (np.maximum(z, 0), 1.0 * (z > 0), 0 * z), [0.0]),
}


def leaky(slope):
    return (lambda z: (np.where(z > 0, z, slope * z), np.where(z > 0, 1, slope), 0 * z)), [0.0]


def shaped(name, constants):
    """φ, φ', φ'' of the shaped activation, and its kinks."""
    if "negative_slope" in constants:
        inner, kinks = leaky(constants["negative_slope"])
    else:
        inner, kinks = FUNCTIONS[name]
    a, b = constants.get("input_scale", 1.0), constants.get("input_shift", 0.0)
    d, g = constants.get("output_shift", 0.0), constants.get("output_scale", 1.0)

    def function(x):
        value, slope, bend = inner(a * x + b)
        return g * (value + d), g * a * slope, g * a * a * bend

    return function, [(k - b) / a for k in kinks]


def rule(kinks, reach=11.0, nodes=400, graded=False):
    x, w = np.polynomial.legendre.leggauss(nodes)
    kinks = [*kinks, *(sign * 4.0**-k for k in range(16) for sign in (-1, 1))] if graded else kinks
    points = [-reach, *sorted(k for k in kinks if abs(k) < reach), reach]
    xs = np.concatenate([(b - a) / 2 * x + (a + b) / 2 for a, b in pairwise(points)])
    ws = np.concatenate([(b - a) / 2 * w for a, b in pairwise(points)])
    return xs, ws * _normal(xs)


def local_values(function, kinks):
    """Q(1), Q'(1), C(0), C'(1), C''(1)."""
    x, w = rule(kinks)
    value, slope, bend = function(x)
    size = (w * value**2).sum()
    return {
        "Q(1)": size,
        "Q'(1)": (w * value * slope * x).sum(),
        "C(0)": (w * value).sum() ** 2 / size,
        "C'(1)": (w * slope**2).sum() / size,
        "C''(1)": (w * bend**2).sum() / size,
    }


def c_map(function, kinks, c, q=1.0):
    """C(c), the inner integral conditional on the outer variable, each split at the kinks."""
    x, w = rule(np.array(kinks) / math.sqrt(q), nodes=200)
    rest = math.sqrt(1 - c * c)
    value = function(math.sqrt(q) * x)[0]
    inner = np.empty_like(x)
    for i, xi in enumerate(x):
        y, v = rule([(k / math.sqrt(q) - c * xi) / rest for k in kinks], nodes=120)
        inner[i] = (v * function(math.sqrt(q) * (c * xi + rest * y))[0]).sum()
    return (w * value * inner).sum() / (w * value**2).sum()
