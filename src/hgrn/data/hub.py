"""Loads one split with Hugging Face `datasets`: by name, or from a folder it has saved."""

from typing import TYPE_CHECKING, cast

from hgrn.data.disk import user_path
from hgrn.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


def load_split(dataset: str, config: str | None, split: str) -> "Dataset":
    """Loads one split.

    dataset: a name on the hub, a folder that `datasets` can read, or one that it has saved.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    folder = user_path(dataset, "data.dataset")
    try:
        # `DatasetDict.save_to_disk` writes this file.
        if (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(folder))
            assert isinstance(splits, datasets.DatasetDict)
            if split not in splits:
                raise ValueError(
                    f"it has no split {split!r}; there is {', '.join(map(str, splits))}"
                )
            return splits[split]
        # `Dataset.save_to_disk` writes this file; such a folder has no splits.
        if (folder / "state.json").is_file():
            return cast(datasets.Dataset, datasets.load_from_disk(str(folder)))
        source = str(folder) if folder.is_dir() else dataset
        return datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"dataset {dataset!r}, config {config!r}, split {split!r} cannot be loaded: "
            f"{reason}. Check the three names and the network connection; a data set that was "
            "downloaded before, or a local folder, needs none"
        ) from error
