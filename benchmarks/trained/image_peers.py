"""Other image models, trained by our loop on our data for as long, with about as many parameters.

Each is a task with another model. Our modules name what Muon updates and what weight decay spares;
theirs do not, so they take `optimizer.name: adamw` and `optimizer.no_decay: none`.
"""

from typing import Any

from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hgrn.training.tasks.images import ImageTask


class ViT(ViTForImageClassification):
    """A Vision Transformer that saves its weights under the names that they have in memory.

    transformers would write older names, which a resumed run does not find.
    """

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(*args, save_original_format=False, **kwargs)


class ViTTask(ImageTask):
    """A Vision Transformer on the patches of the recipe: 108 channels, 4 heads, 5 layers."""

    def _build_model(self) -> ViT:
        ours: Any = self._config()
        config = ViTConfig(
            image_size=self.recipe.images.size,
            patch_size=ours.patch_size,
            num_channels=ours.num_channels,
            hidden_size=108,
            num_hidden_layers=5,
            num_attention_heads=4,
            intermediate_size=216,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=ours.id2label,
            label2id=ours.label2id,
        )
        return ViT(config)


class CNNTask(ImageTask):
    """A residual network of three stages, without the pooling that large images need first."""

    def _build_model(self) -> ResNetForImageClassification:
        ours: Any = self._config()
        config = ResNetConfig(
            num_channels=ours.num_channels,
            embedding_size=26,
            hidden_sizes=[26, 54, 107],
            depths=[2, 2, 2],
            layer_type="basic",
            downsample_in_first_stage=False,
            id2label=ours.id2label,
            label2id=ours.label2id,
        )
        model = ResNetForImageClassification(config)
        # Its own entrance has a stride of 2 twice, which would leave 7 x 7 of 28 x 28 pixels.
        entrance: Any = model.resnet.embedder
        entrance.embedder.convolution = nn.Conv2d(
            ours.num_channels, config.embedding_size, 3, padding=1, bias=False
        )
        entrance.pooler = nn.Identity()
        return model


class LSTMConfig(PreTrainedConfig):
    """Sizes of `LSTMForImageClassification`."""

    model_type = "lstm-of-pixels"
    num_channels: int = 1
    hidden_size: int = 64
    num_layers: int = 2


class LSTMForImageClassification(PreTrainedModel):
    """`nn.LSTM` over the pixels in raster order, and a linear map of its last output."""

    config_class = LSTMConfig

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.lstm = nn.LSTM(
            config.num_channels, config.hidden_size, config.num_layers, batch_first=True
        )
        self.score = nn.Linear(config.hidden_size, len(config.id2label or ()))
        # The usual start is an open forget gate, so that the first pixels' gradient is not lost.
        for name, bias in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                bias.data[config.hidden_size : 2 * config.hidden_size] = 1.0

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """pixel_values: float `[B, C, H, W]`; logits `[B, num_labels]`."""
        output, _ = self.lstm(pixel_values.flatten(2).transpose(1, 2))
        return ImageClassifierOutput(logits=self.score(output[:, -1]))


class LSTMTask(ImageTask):
    """An LSTM of about as many parameters as the recipe's model."""

    def _build_model(self) -> LSTMForImageClassification:
        ours: Any = self._config()
        return LSTMForImageClassification(
            LSTMConfig(
                num_channels=ours.num_channels,
                hidden_size=94,
                id2label=ours.id2label,
                label2id=ours.label2id,
            )
        )
