"""Labelled images in, batches out.

`opening` says where images come from and opens them; `idx`, `cifar`, `folders`, `shards` and `hub`
read the formats, and `decoding` turns image files into tensors. `sampling` decides which images a
step sees; `augment`, `randaugment` and `mixing` change them; `loading` puts all of it together.
`preview` draws contact sheets. Import from those modules.
"""
