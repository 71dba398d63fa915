"""Text in, batches out.

`text` says where text comes from, `files` reads it, `encoding` turns it into tokens, `tokens` keeps them on
disk, `sampling` draws batches in the order of `shuffle`, `tokenizer` makes, loads and trains tokenizers.
Import from those modules.
"""
