"""HGRN as Hugging Face models; importing this registers them with the Auto classes of transformers."""

from hgrn.models.backbone import HGRNModel, HGRNPreTrainedModel
from hgrn.models.cache import HGRNCache
from hgrn.models.classification import (
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
)
from hgrn.models.configuration import HGRNConfig
from hgrn.models.heads import HGRNForCausalLM
from hgrn.models.image_processing import HGRNImageProcessor
from hgrn.models.images import HGRNForImageClassification
from hgrn.models.registration import register
from hgrn.models.session import Session

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
