"""Labelled images in, batches out.

`opening` says where images come from and opens them; `idx`, `cifar`, `folders`, `shards` and `hub` read the
formats; `decoding` turns files into tensors; `sampling` says which images a step sees; `augment`,
`randaugment` and `mixing` change them; `loading` puts it together; `preview` draws contact sheets.
Import from those modules.
"""
