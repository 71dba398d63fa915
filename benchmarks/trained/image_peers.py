"""Other image models, trained by our loop on our data: what HGRN is compared with at equal parameters and equal time.

Each is a task whose model is another one. They take AdamW (`optimizer.name: adamw`, `optimizer.no_decay: none`).
"""

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
    """Saved under the names that its weights have in memory, which a resume reads; transformers would write older ones."""

    def save_pretrained(self, *args, **kwargs):
        super().save_pretrained(*args, save_original_format=False, **kwargs)


class ViTTask(ImageTask):
    """A Vision Transformer on the patches of the recipe: 108 channels, 4 heads, 5 layers."""

    def _build_model(self) -> ViT:
        ours = self._config()
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
    """A residual network of three stages, without the pooling that large images get at its entrance."""

    def _build_model(self) -> ResNetForImageClassification:
        ours = self._config()
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
        entrance = model.resnet.embedder
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
    """`nn.LSTM` over the pixels in raster order, and a linear map on its output at the last."""

    config_class = LSTMConfig

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.lstm = nn.LSTM(
            config.num_channels, config.hidden_size, config.num_layers, batch_first=True
        )
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        # The usual start: a forget gate that is open, so that the gradient of the first pixels is not lost.
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
        ours = self._config()
        return LSTMForImageClassification(
            LSTMConfig(
                num_channels=ours.num_channels,
                hidden_size=94,
                id2label=ours.id2label,
                label2id=ours.label2id,
            )
        )
