"""How transformers finds these models where hgrn is imported; saved folders carry a loader for elsewhere."""

import warnings

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
from hgrn.models.classification import HGRNForSequenceClassification
from hgrn.models.configuration import HGRNConfig
from hgrn.models.heads import HGRNForCausalLM
from hgrn.models.image_processing import HGRNImageProcessor
from hgrn.models.images import HGRNForImageClassification


def register(overwrite: bool = False) -> None:
    """Registers the models with the Auto classes of transformers. Importing `hgrn.models` does this once.

    Args:
        overwrite: take the model type "hgrn" even where another package holds it.

    Where another package (flash-linear-attention has models of that name) holds "hgrn", it keeps it and a
    warning names it: the Auto classes then read saved folders with that package's classes, while
    `HGRNForCausalLM.from_pretrained` and the like are unaffected.
    """
    AutoModel.register(HGRNConfig, HGRNModel, exist_ok=True)
    AutoModelForCausalLM.register(HGRNConfig, HGRNForCausalLM, exist_ok=True)
    AutoModelForImageClassification.register(HGRNConfig, HGRNForImageClassification, exist_ok=True)
    AutoModelForSequenceClassification.register(
        HGRNConfig, HGRNForSequenceClassification, exist_ok=True
    )
    # As AutoImageProcessor.register does, but that class of transformers 5.17 wants torchvision before it answers at all.
    IMAGE_PROCESSOR_MAPPING.register(HGRNConfig, {"pil": HGRNImageProcessor}, exist_ok=True)
    # A pipeline of images looks for a processor of videos, too. It would make up a name for one from that of the image processor, and
    # ask to run the code of the folder to find it; here it learns that there is none.
    VIDEO_PROCESSOR_MAPPING.register(HGRNConfig, {}, exist_ok=True)
    name = HGRNConfig.model_type
    # Trainer's label smoothing does not ask the Auto classes but looks for the name of the class here; without it, it would
    # compare each position with its own token and not with the next.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] = HGRNForCausalLM.__name__
    holder = CONFIG_MAPPING[name] if name in CONFIG_MAPPING else HGRNConfig
    if holder is not HGRNConfig and not overwrite:
        package = holder.__module__.split(".")[0]
        warnings.warn(
            f"the model type {name!r} is held by the package {package!r}, so AutoConfig and the other Auto "
            "classes stay with it; hgrn.models.register(overwrite=True) gives them to hgrn",
            stacklevel=2,
        )
        return
    AutoConfig.register(name, HGRNConfig, exist_ok=True)
    # `transformers serve` takes the class of a checkpoint from transformers itself, by its name (docs/hugging_face.md).
    transformers.HGRNForCausalLM = HGRNForCausalLM
