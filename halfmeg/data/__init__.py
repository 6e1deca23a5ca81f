"""Sources of images: from a name or a path to `DataSplits` of uint8 pixels.

| module | holds |
|---|---|
| `load` | `load_dataset` and `inspect_data`: one call for every source |
| `digits`, `cifar`, `parquet`, `folder` | the sources |
| `decode`, `source` | files to pixels |
| `cache` | decoded data, kept on disk |
| `dataset` | `Dataset`, `DataSplits`, the stratified split |
| `check` | what is wrong with a source |
| `augment`, `corrupt` | pure functions on batches of images |
"""
