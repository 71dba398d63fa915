"""HGRN as plain PyTorch modules: `HGRN` goes where an `nn.LSTM` was, the others are its parts."""

from .block import Block
from .bounds import LowerBounds
from .embeddings import PatchEmbedding, positions, sinusoids
from .glu import GLU
from .hgru import HGRU
from .hgru2d import HGRU2d
from .int8 import Int8Linear, quantize_int8
from .linear import Linear
from .norms import BatchNorm, SimpleRMSNorm
from .parameters import layer_matrices, no_decay_names
from .short_conv import ShortConvolution
from .stack import HGRN
from .stepper import Stepper

__all__ = [
    "BatchNorm",
    "Block",
    "GLU",
    "HGRN",
    "HGRU",
    "HGRU2d",
    "Int8Linear",
    "Linear",
    "LowerBounds",
    "PatchEmbedding",
    "ShortConvolution",
    "SimpleRMSNorm",
    "Stepper",
    "layer_matrices",
    "no_decay_names",
    "positions",
    "quantize_int8",
    "sinusoids",
]
