"""The five kinds of arena data that a recipe can name, and one `prepare` for them."""

from hgrn.data.lra import image, listops, pathfinder, retrieval, text
from hgrn.data.lra.image import ArenaImageData
from hgrn.data.lra.listops import ListOpsData
from hgrn.data.lra.pathfinder import PathfinderData
from hgrn.data.lra.retrieval import RetrievalData
from hgrn.data.lra.splits import LabelledData
from hgrn.data.lra.text import TextClassificationData

# The field `task` says which one it is: a discriminated union for pydantic.
LRAData = ListOpsData | TextClassificationData | RetrievalData | ArenaImageData | PathfinderData

MODULES = {
    "listops": listops,
    "text": text,
    "retrieval": retrieval,
    "image": image,
    "pathfinder": pathfinder,
}


def prepare(data: LRAData) -> LabelledData:
    """The splits of a task, from the cache or encoded now.

    Raises UserError for whatever is wrong with its files.
    """
    return MODULES[data.task].prepare(data)
