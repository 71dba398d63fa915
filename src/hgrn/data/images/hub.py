"""Image data sets of Hugging Face `datasets`, by name or from a folder."""

from pathlib import Path

import torch

from hgrn.data.hub import load_split
from hgrn.data.images.decoding import decode
from hgrn.data.images.source import CorruptImage, ImageSource
from hgrn.errors import UserError


class HubSource(ImageSource):
    """One split of a data set with a column of images and a column of class labels."""

    def __init__(
        self,
        dataset: str,
        config: str | None,
        split: str,
        image_field: str,
        label_field: str,
        channels: int,
    ):
        import datasets

        loaded = load_split(dataset, config, split)
        self.name = f"split {split!r} of {dataset}"
        self.channels = channels
        self.image_field = image_field
        self.label_field = label_field
        for field, kind in ((image_field, datasets.Image), (label_field, datasets.ClassLabel)):
            found = loaded.features.get(field)
            if not isinstance(found, kind):
                has = "is not there" if found is None else f"is of type {type(found).__name__}"
                raise UserError(
                    f"dataset {dataset!r}: column {field!r} must be of type {kind.__name__}, and "
                    f"it {has}; its columns are {', '.join(loaded.column_names)}: set image_field "
                    "and label_field"
                )
        if len(loaded) == 0:
            raise UserError(f"{self.name} holds no images")
        self.classes = list(loaded.features[label_field].names)
        # We decode the images ourselves, so that we can name and skip a damaged one. `datasets`
        # would raise an error of its own.
        self._rows = loaded.select_columns([image_field, label_field]).cast_column(
            image_field, datasets.Image(decode=False)
        )

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        row = self._rows[index]
        name = f"image {index} of {self.name}"
        content = row[self.image_field]
        label = row[self.label_field]
        if label is None or label < 0:
            raise UserError(f"{name} has no label; splits without labels cannot be used")
        if content is None:
            raise CorruptImage(name, "it is missing")
        data = content["bytes"]
        if data is None:  # the data set holds only the path of a file
            try:
                data = Path(content["path"]).read_bytes()
            except OSError as error:
                raise CorruptImage(name, str(error)) from None
        return decode(data, name, self.channels), label

    def fingerprint(self) -> str:
        """The hash that `datasets` keeps of the files and of all changes to them."""
        return self._rows._fingerprint
