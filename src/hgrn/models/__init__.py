"""HGRN as Hugging Face models; importing this registers them with the Auto classes of transformers."""

from .backbone import HGRNModel, HGRNPreTrainedModel
from .cache import HGRNCache
from .classification import HGRNForSequenceClassification, HGRNForSequencePairClassification
from .configuration import HGRNConfig
from .heads import HGRNForCausalLM
from .image_processing import HGRNImageProcessor
from .images import HGRNForImageClassification
from .registration import register
from .session import Session

__all__ = [
    "HGRNCache",
    "HGRNConfig",
    "HGRNForCausalLM",
    "HGRNForImageClassification",
    "HGRNForSequenceClassification",
    "HGRNForSequencePairClassification",
    "HGRNImageProcessor",
    "HGRNModel",
    "HGRNPreTrainedModel",
    "Session",
    "register",
]

register()
