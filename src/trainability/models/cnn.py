"""Plain convolutional networks of any depth, without shortcuts."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainability.errors import ArgumentError
from trainability.models.registry import Architecture, check_sizes, register
from trainability.nn.names import check_nonlinearity

if TYPE_CHECKING:
    from torch import nn


@register("cnn")
@dataclass(frozen=True)
class CNN(Architecture):
    """A plain convolutional network, whose last hidden layer is a fully connected one.

    Args:
        depth: hidden layers, of which the last is fully connected
        width: channels of every convolution
        nonlinearity: relu, leaky_relu, tanh, selu, elu, gelu, silu, softplus or sigmoid
        batchnorm: BatchNorm between every convolution and its nonlinearity
        strides: convolutions, from the second on, that halve height and width
        head: neurons of the fully connected layer; as many as there are channels unless given
    """

    depth: int = 30
    width: int = 64
    nonlinearity: str = "relu"
    batchnorm: bool = False
    strides: int = 0
    head: int | None = None

    def __post_init__(self) -> None:
        check_sizes(depth=self.depth, width=self.width, head=1 if self.head is None else self.head)
        check_nonlinearity(self.nonlinearity)
        if not 0 <= self.strides <= max(0, self.depth - 2):
            raise ArgumentError(
                f"strides is {self.strides}; {self.depth} layers have {max(0, self.depth - 2)} convolutions that can "
                "halve the image",
                code="out-of-range",
            )

    def built_in(self) -> list[str]:
        """The remedies that these settings amount to."""
        return ["batchnorm"] * self.batchnorm

    def build(self, shape: tuple[int, ...], outputs: int) -> "nn.Module":
        """The network for images of shape ``(channels, height, width)``."""
        channels, height, width = shape
        return cnn(
            (channels, height, width),
            self.depth,
            self.width,
            outputs,
            nonlinearity=self.nonlinearity,
            batchnorm=self.batchnorm,
            strides=self.strides,
            head=self.head or self.width,
        )


def cnn(
    shape: tuple[int, int, int],
    depth: int,
    channels: int,
    classes: int,
    *,
    nonlinearity: str = "relu",
    batchnorm: bool = False,
    strides: int = 0,
    head: int | None = None,
) -> "nn.Sequential":
    """Build a plain convolutional network with ``depth`` hidden layers and a linear classifier.

    All hidden layers but the last are 3 × 3 convolutions that keep the size; the last is a fully connected one. The
    LBE paper's network of 500 layers is ``cnn((1, 28, 28), depth=500, channels=8, classes=10)``: 499 convolutions of 8
    channels, and a layer of 2 · 28 · 28 neurons.

    Args:
        shape: channels, height and width of an input.
        depth: hidden layers, at least 2.
        channels: of every convolution.
        classes: outputs.
        nonlinearity: by name.
        batchnorm: BatchNorm between every convolution and its nonlinearity.
        strides: how many of the convolutions, from the second on, halve height and width.
        head: neurons of the fully connected layer; by default a quarter of what it takes in, two per pixel with 8
            channels.

    Raises:
        ValueError: a size that is too small, more strides than layers or pixels allow, an unknown nonlinearity.

    Reference: Peer et al. (2022), deep vanilla convolutional networks.

    >>> [name for name, _ in cnn((1, 8, 8), depth=2, channels=8, classes=10).named_children()]
    ['conv1', 'relu1', 'flatten', 'linear2', 'relu2', 'classifier']
    """
    from torch import nn

    from trainability.nn.nonlinearity import nonlinearity_of

    into, height, width = shape
    check_sizes(channels=channels, classes=classes, height=height, width=width)
    if depth < 2:
        raise ArgumentError(
            f"depth must be at least 2, a convolution and a fully connected layer (it is {depth})", code="out-of-range"
        )
    if not 0 <= strides <= depth - 2 or min(height, width) < 2**strides:
        raise ArgumentError(
            f"strides={strides} does not fit {depth - 1} convolutions of {height} × {width} inputs", code="out-of-range"
        )
    layers: list[tuple[str, nn.Module]] = []
    for number in range(1, depth):
        stride = 2 if 2 <= number < 2 + strides else 1
        layers.append((f"conv{number}", nn.Conv2d(into, channels, 3, stride=stride, padding=1)))
        if batchnorm:
            layers.append((f"norm{number}", nn.BatchNorm2d(channels)))
        layers.append((f"{nonlinearity}{number}", nonlinearity_of(nonlinearity)))
        into = channels
        height, width = (height + stride - 1) // stride, (width + stride - 1) // stride
    features = channels * height * width
    neurons = head or max(1, features // 4)
    layers += [
        ("flatten", nn.Flatten()),
        (f"linear{depth}", nn.Linear(features, neurons)),
        (f"{nonlinearity}{depth}", nonlinearity_of(nonlinearity)),
        ("classifier", nn.Linear(neurons, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))
