"""From a recipe to a trained model.

`recipe` says what a run is, `tasks` what is trained, and `loop` trains it. `checkpointing` and
`manifests` save it into the folder that `runfolder` and `runlog` keep.
"""
