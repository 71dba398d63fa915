"""HGRN as Hugging Face models; importing this registers them with transformers."""

from hgrn.models.backbone import HGRNModel, HGRNPreTrainedModel
from hgrn.models.cache import HGRNCache
from hgrn.models.causal_lm import HGRNForCausalLM
from hgrn.models.configuration import HGRNConfig
from hgrn.models.image_classification import HGRNForImageClassification
from hgrn.models.image_processing import HGRNImageProcessor
from hgrn.models.registration import register
from hgrn.models.sequence_classification import (
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
)
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
