"""From a recipe to a trained model.

`specs` says what a recipe may hold, `recipe` reads and checks one (with `combinations` and `problems`), `tasks` is what is
trained, `loop` trains it (`optimizer`, `muon`, `schedules`, `averaging`; `distributed`, `sharding`, `peers`), `checkpointing` saves it;
`runfolder` and `runlog` keep the folder that it writes to. Import from those modules.
"""
