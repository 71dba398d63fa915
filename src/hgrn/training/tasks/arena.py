"""The tasks of Long Range Arena: sequences, pairs of sequences, and images pixel by pixel."""

from typing import TYPE_CHECKING

from hgrn.data.lra.image import ArenaImageData
from hgrn.data.lra.load import prepare
from hgrn.data.lra.sampling import ExampleBatch, ExampleSampler, in_order
from hgrn.data.lra.splits import ImageSplit, LabelledData, PairSplit
from hgrn.data.lra.tokenizer import build_tokenizer
from hgrn.errors import UserError
from hgrn.progress import OnProgress
from hgrn.training.recipe import ArenaRecipe
from hgrn.training.tasks.classification import ClassificationTask, Examples

if TYPE_CHECKING:
    from hgrn.models.classification import Classifier


class ArenaTask(ClassificationTask):
    """Examples of one of the six tasks, each with a class."""

    recipe: ArenaRecipe
    sampler: ExampleSampler

    def _open(self, on_progress: OnProgress | None) -> None:
        recipe = self.recipe
        ranks = self.ranks
        self.data = prepare(recipe.data)
        self.fingerprint = self.data.fingerprint
        self.size = len(self.data.splits["train"])
        self.data_name = f"{recipe.data.task} {recipe.data.path}"
        self.processor = (
            None if self.data.vocabulary is None else build_tokenizer(recipe.data.task, self.data)
        )
        self.sampler = ExampleSampler(
            self.data,
            "train",
            recipe.batch.batch_size,
            recipe.training.seed,
            rank=ranks.data_rank,
            world=ranks.data_world,
            pad_to=recipe.batch.pad_to,
            group_by_length=recipe.batch.group_by_length,
            augment=isinstance(recipe.data, ArenaImageData) and recipe.data.augment,
        )

    def next_batch(self) -> ExampleBatch:
        return self.sampler.next()

    def examples(self) -> Examples:
        return _examples(self.recipe, self.data, "validation")

    def _build_model(self) -> "Classifier":
        from hgrn import models

        data = self.data
        names = dict(enumerate(data.classes))
        facts = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        if isinstance(data.splits["train"], ImageSplit):
            kind = models.HGRNForImageClassification
            facts["num_channels"] = len(data.mean)
        else:
            pairs = isinstance(data.splits["train"], PairSplit)
            kind = (
                models.HGRNForSequencePairClassification
                if pairs
                else models.HGRNForSequenceClassification
            )
            # Everything but images has a vocabulary.
            assert data.vocabulary is not None
            facts["vocab_size"] = len(data.vocabulary.tokens)
        try:
            config = self.recipe.model.config(**facts)
            model = kind(config)
        except ValueError as error:
            raise UserError(f"model: {error}") from error
        # A vocabulary that the recipe sets may be too small for the data.
        if (needed := facts.get("vocab_size", 0)) > config.vocab_size:
            raise UserError(
                f"model.vocab_size = {config.vocab_size}, but the data has {needed} tokens: raise "
                "it or leave it out"
            )
        return model


def open_examples(recipe: ArenaRecipe, split: str) -> Examples:
    """The examples of a split, padded as in training."""
    return _examples(recipe, prepare(recipe.data), split)


def _examples(recipe: ArenaRecipe, data: LabelledData, split: str) -> Examples:
    batches = in_order(data, split, recipe.batch.batch_size, pad_to=recipe.batch.pad_to)
    return Examples(batches, len(data.splits[split]), list(data.classes), data.fingerprint)


TASK = ArenaTask
