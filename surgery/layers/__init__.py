"""Kinds of layer that read as the operator `linear`, each in a file of its own."""

from surgery.layers.convolution import Convolution
from surgery.layers.embedding import Embedding
from surgery.layers.kind import Layer, LayerKind, Reads, kind_named, kind_of, kinds, register
from surgery.layers.linear import Linear
from surgery.layers.products import operator_of
from surgery.layers.transposed import TransposedLinear
from surgery.layers.transposed_convolution import TransposedConvolution

LINEAR = register(Linear())
TRANSPOSED = register(TransposedLinear())
register(Convolution())
register(TransposedConvolution())
register(Embedding())

__all__ = [
    "LINEAR",
    "TRANSPOSED",
    "Layer",
    "LayerKind",
    "Reads",
    "kind_named",
    "kind_of",
    "kinds",
    "operator_of",
    "register",
]
