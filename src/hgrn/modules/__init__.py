"""HGRN as plain PyTorch modules: `HGRN` takes the place of an `nn.LSTM`; the rest are its parts."""

from hgrn.modules.block import Block
from hgrn.modules.bounds import LowerBounds
from hgrn.modules.embeddings import PatchEmbedding, positions, sinusoids
from hgrn.modules.glu import GLU
from hgrn.modules.hgrn2 import HGRN2Mixer
from hgrn.modules.hgru import HGRU, HGRU2d
from hgrn.modules.linear import Int8Linear, Linear, quantize_int8
from hgrn.modules.mixer import Mixer
from hgrn.modules.mixers import register_mixer
from hgrn.modules.norms import BatchNorm, SimpleRMSNorm
from hgrn.modules.parameters import layer_matrices, no_decay_names
from hgrn.modules.short_conv import ShortConvolution
from hgrn.modules.stack import HGRN
from hgrn.modules.stepper import Stepper

__all__ = [
    "GLU",
    "HGRN",
    "HGRU",
    "BatchNorm",
    "Block",
    "HGRN2Mixer",
    "HGRU2d",
    "Int8Linear",
    "Linear",
    "LowerBounds",
    "Mixer",
    "PatchEmbedding",
    "ShortConvolution",
    "SimpleRMSNorm",
    "Stepper",
    "layer_matrices",
    "no_decay_names",
    "positions",
    "quantize_int8",
    "register_mixer",
    "sinusoids",
]
