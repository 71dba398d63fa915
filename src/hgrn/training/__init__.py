"""From a recipe to a trained model.

`recipe` says what a run is, `tasks` what is trained, `loop` trains it, `checkpointing` saves it; `runfolder`
and `runlog` keep the folder that it writes to. Import from those modules.
"""
