"""Classifiers of images: batches from `hgrn.data.images`, augmented and mixed as in the recipe."""

from typing import TYPE_CHECKING, Any, cast

from hgrn.data.images.augment import EvaluationTransform, Normalisation, TrainingTransform
from hgrn.data.images.loading import ImageBatch, ImageLoader, evaluation_batches
from hgrn.data.images.opening import open_images
from hgrn.data.images.sampling import ImageSampler
from hgrn.data.images.source import ImageSource
from hgrn.errors import UserError
from hgrn.progress import OnProgress
from hgrn.training.recipe import ImageRecipe
from hgrn.training.tasks.classification import ClassificationTask, Examples

if TYPE_CHECKING:
    from hgrn.models import HGRNConfig, HGRNForImageClassification, HGRNImageProcessor


class ImageTask(ClassificationTask):
    """Images of a recipe, each with a class."""

    unit = "images"
    recipe: ImageRecipe

    def _open(self, on_progress: OnProgress | None) -> None:
        recipe = self.recipe
        ranks = self.ranks
        data = recipe.data
        images = recipe.images
        train = open_images(data, "train")
        self.classes = train.classes
        self.fingerprint = train.fingerprint()
        self.size = len(train)
        self.data_name = f"{data.format} {data.path or ', '.join(data.splits.values())}"
        self.validation = open_images(data, "validation") if recipe.training.eval_every else None
        self.processor = image_processor(recipe)
        self.sampler = ImageSampler(
            train,
            recipe.batch.batch_size,
            recipe.training.seed,
            ranks.data_rank,
            ranks.data_world,
            recipe.batch.repeats,
        )
        transform = TrainingTransform(
            recipe.augmentation, images.size, Normalisation(images.mean, images.std), images.resize
        )
        self.loader = ImageLoader(
            self.sampler,
            transform,
            recipe.mixing,
            workers=images.workers,
            max_corrupt=images.max_corrupt,
            patch=cast(int, self._config().patch_size),
            device=ranks.device,
        )

    def next_batch(self) -> ImageBatch:
        return self.loader.next()

    def examples(self) -> Examples:
        assert self.validation is not None  # only a run with training.eval_every validates
        return _examples(self.recipe, self.validation)

    def load_state_dict(self, states: list[dict]) -> None:
        self.loader.load_state_dict(states[0]["sampler"])

    def _build_model(self) -> "HGRNForImageClassification":
        from hgrn.models import HGRNForImageClassification

        return HGRNForImageClassification(self._config())

    def _config(self) -> "HGRNConfig":
        """The configuration of the model for the classes and channels of the data."""
        names = dict(enumerate(self.classes))
        try:
            config = self.recipe.model.config(
                num_channels=self.recipe.data.channels,
                id2label=names,
                label2id={name: i for i, name in names.items()},
            )
        except ValueError as error:
            raise UserError(f"model: {error}") from error
        if config.patch_size is None or self.recipe.images.size % config.patch_size:
            raise UserError(
                f"model.patch_size = {config.patch_size}: must be given and divide images.size = "
                f"{self.recipe.images.size}"
            )
        return config


def open_examples(recipe: ImageRecipe, split: str) -> Examples:
    """The images of a split, as the recipe's evaluation sees them."""
    return _examples(recipe, open_images(recipe.data, split))


def _examples(recipe: ImageRecipe, source: ImageSource) -> Examples:
    images = recipe.images
    transform = EvaluationTransform(
        images.size, Normalisation(images.mean, images.std), images.resize
    )
    # A batch of this size fits into memory while training.
    size = recipe.batch.batch_size // recipe.batch.accumulation
    batches = evaluation_batches(
        source, size, transform, workers=images.workers, max_corrupt=images.max_corrupt
    )
    return Examples(batches, len(source), list(source.classes))


def image_processor(recipe: ImageRecipe) -> "HGRNImageProcessor":
    """The processor that gives a model image files as the recipe's evaluation sees them."""
    from hgrn.models import HGRNImageProcessor

    images = recipe.images
    # transformers takes the settings of a processor by keywords that its types do not name.
    settings: dict[str, Any] = dict(
        num_channels=recipe.data.channels,
        image_mean=list(images.mean),
        image_std=list(images.std),
        size={"shortest_edge": images.resize or images.size},
        crop_size={"height": images.size, "width": images.size},
    )
    return HGRNImageProcessor(**settings)


TASK = ImageTask
