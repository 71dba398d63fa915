"""One split of a data set of Hugging Face `datasets`: by name, or from a folder that it has saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hgrn.data.disk import user_path
from hgrn.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def load_split(dataset: str, config: str | None, split: str) -> Dataset:
    """The split. dataset: a name, a folder that `datasets` can read, or one that it has saved. Raises UserError."""
    import datasets

    folder = user_path(dataset, "data.dataset")
    try:
        if (folder / "dataset_dict.json").is_file():  # written by `DatasetDict.save_to_disk`
            splits = datasets.load_from_disk(str(folder))
            if split not in splits:
                raise ValueError(f"it has no split {split!r}; there is {', '.join(splits)}")
            return splits[split]
        if (
            folder / "state.json"
        ).is_file():  # written by `Dataset.save_to_disk`, which has no splits
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(
            str(folder) if folder.is_dir() else dataset, config, split=split
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"dataset {dataset!r}, config {config!r}, split {split!r} cannot be loaded: "
            f"{reason}. Check the three names and the network connection; a data set that was "
            "downloaded before, or a local folder, needs none"
        ) from error
