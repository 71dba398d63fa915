"""The six tasks of the Long Range Arena: their official files, and generators for the two that are synthetic.

Each task has a room that reads its files (`listops`, `text`, `retrieval`, `image`, `pathfinder`). `prepare` of
`load` turns what a recipe says into `splits`, encoded once and kept on disk by `store`, with the token ids of
`vocabulary`; `sampling` draws batches of examples. `listops_generator`, `pathfinder_drawing` and
`pathfinder_generator` write new data in the official format. Import from those modules.
"""
