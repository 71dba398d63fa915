"""From what a recipe says to the data of a task."""

from __future__ import annotations

from hgrn.data.lra import image, listops, pathfinder, retrieval, text
from hgrn.data.lra.image import ImageData
from hgrn.data.lra.listops import ListOpsData
from hgrn.data.lra.pathfinder import PathfinderData
from hgrn.data.lra.retrieval import RetrievalData
from hgrn.data.lra.splits import LabelledData
from hgrn.data.lra.text import TextClassificationData

# Which one it is, the field `task` says: a discriminated union for pydantic.
LRAData = ListOpsData | TextClassificationData | RetrievalData | ImageData | PathfinderData

ROOMS = {
    "listops": listops,
    "text": text,
    "retrieval": retrieval,
    "image": image,
    "pathfinder": pathfinder,
}


def prepare(data: LRAData) -> LabelledData:
    """The splits of a task, from the cache or encoded now. Raises UserError for whatever is wrong with its files."""
    return ROOMS[data.task].prepare(data)
