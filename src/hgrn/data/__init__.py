"""Text, images and labelled sequences in, batches out.

Text goes through `text` (what a recipe says), `files` and `records` (reading), `encoding` (tokens),
`tokens` (kept on disk) and `sampling` (batches). `images` and `lra` are rooms of their own. Import
from the modules.
"""
