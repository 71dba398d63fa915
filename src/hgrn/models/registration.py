"""How transformers finds these models in a program that imports hgrn.

For programs that do not, saved folders carry a loader (see `loader`).
"""

import warnings
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

from hgrn.models.backbone import HGRNModel
from hgrn.models.causal_lm import HGRNForCausalLM
from hgrn.models.configuration import HGRNConfig
from hgrn.models.image_classification import HGRNForImageClassification
from hgrn.models.image_processing import HGRNImageProcessor
from hgrn.models.sequence_classification import HGRNForSequenceClassification


def register(overwrite: bool = False) -> None:
    """Register the models with the Auto classes; importing `hgrn.models` does this once.

    Another package may hold the model type "hgrn" already (flash-linear-attention does). Then it
    keeps it, and a warning names it: the Auto classes read saved folders with the classes of that
    package. `HGRNForCausalLM.from_pretrained` and the other classes of ours are not affected.

    Args:
        overwrite: take the model type "hgrn" in any case.
    """
    AutoModel.register(HGRNConfig, HGRNModel, exist_ok=True)
    AutoModelForCausalLM.register(HGRNConfig, HGRNForCausalLM, exist_ok=True)
    AutoModelForImageClassification.register(HGRNConfig, HGRNForImageClassification, exist_ok=True)
    AutoModelForSequenceClassification.register(
        HGRNConfig, HGRNForSequenceClassification, exist_ok=True
    )
    # This is what AutoImageProcessor.register does. But in transformers 5.17 that class does
    # nothing without torchvision.
    processors: Any = {"pil": HGRNImageProcessor}
    IMAGE_PROCESSOR_MAPPING.register(HGRNConfig, processors, exist_ok=True)
    # A pipeline of images also looks for a processor of videos. Without this entry it would guess a
    # name for one and ask to run the code in the folder to find it; the entry says that there is
    # none.
    none: Any = {}
    VIDEO_PROCESSOR_MAPPING.register(HGRNConfig, none, exist_ok=True)
    name = HGRNConfig.model_type
    # Trainer's label smoothing looks for the name of the class here, not in the Auto classes.
    # Without it, it would compare each position with its own token and not with the next one.
    name_of_lm = HGRNForCausalLM.__name__
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] = name_of_lm
    # Its `get` does not know what was registered.
    holder = CONFIG_MAPPING[name] if name in CONFIG_MAPPING else HGRNConfig  # noqa: SIM401
    if holder is not HGRNConfig and not overwrite:
        package = holder.__module__.split(".")[0]
        warnings.warn(
            f"the model type {name!r} is held by the package {package!r}, so AutoConfig and the "
            "other Auto classes stay with it; hgrn.models.register(overwrite=True) gives them to "
            "hgrn",
            stacklevel=2,
        )
        return
    AutoConfig.register(name, HGRNConfig, exist_ok=True)
    # `transformers serve` takes the class of a checkpoint from transformers itself, by its name
    # (docs/hugging_face.md).
    setattr(transformers, name_of_lm, HGRNForCausalLM)
