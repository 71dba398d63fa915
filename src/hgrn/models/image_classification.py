"""HGRNModel with a head that classifies images."""

from torch import Tensor
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from hgrn.models.classification import Classifier
from hgrn.models.configuration import HGRNConfig
from hgrn.modules import Linear


class HGRNForImageClassification(Classifier):
    """HGRN on the patches of an image, and `Linear(D, num_labels)` on their mean.

    The published image models scan the raster of patches from both ends; with `grid`, rows and
    columns are scanned. With patch_size 1 it reads pixel by pixel, also causally (the image tasks
    of Long Range Arena; digits in 784 steps).
    """

    main_input_name = "pixel_values"
    reads_images = True

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        self.score = Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: floats `[B, num_channels, height, width]`, normed as in training; height
                and width are multiples of patch_size.
            labels: `[B]`: class numbers (-100 is not scored), or values if num_labels is 1; `[B,
                num_labels]` floats for several labels or values each. `config.problem_type` decides
                if it is set.
            output_hidden_states: return the input of every block, and the output of the last, each
                `[B, patches, D]`.
            output_attentions: not available; accepted because some callers always pass it.
            num_items_in_batch: divide the summed loss by this; default: by the number of labels
                scored.

        Returns:
            loss if labels are given, logits `[B, num_labels]`, hidden_states.

        Raises:
            ValueError, TypeError: an argument does not fit; the message names it.
        """
        pooled, hidden_states = self._encode(
            pixel_values=pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.score(pooled)
        return ImageClassifierOutput(
            loss=self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=hidden_states,
        )
