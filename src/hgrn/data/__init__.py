"""Text, images and labelled sequences in, batches out.

`text` says where text comes from, `files` reads it, `encoding` turns it into tokens, `tokens` keeps them on
disk, `sampling` draws batches in the order of `shuffle`, `tokenizer` makes, loads and trains tokenizers.
`images` and `lra` are rooms of their own. What the three share: `position` of a sampler, `labelled` batches, `hub`.
Import from those modules.
"""
