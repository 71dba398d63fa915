"""The six tasks of the Long Range Arena: readers of the official files, and two generators.

`listops`, `text`, `retrieval`, `image` and `pathfinder` each read the files of a task. `prepare` of
`load` turns a recipe's data section into `splits`, encoded with the token ids of `vocabulary` and
kept on disk; `sampling` draws batches of examples. `listops_generator`, `pathfinder_drawing` and
`pathfinder_generator` write new data in the official format. Import from those modules.
"""
