"""Sources of images: from a name or a path to `DataSplits` of uint8 pixels.

| module | holds |
|---|---|
| `load` | `load_dataset` and `inspect_source`: one call for every source |
| `digits`, `cifar`, `parquet`, `folder`, `table`, `arrays` | the sources |
| `parquet_files` | the Parquet files of a source, by part |
| `batches` | the files of CIFAR's two forms, without running what they name |
| `shape` | channels, height and width of images, and how a user writes them |
| `hub` | data sets of the Hugging Face hub |
| `pace` | when to give up on a server that hardly sends |
| `options`, `parts`, `columns`, `scan` | how it is read: parts, columns, every file of a folder |
| `formats`, `unpack` | what is read, and bounds on what a file may hold |
| `decode`, `source` | files to pixels |
| `cache` | decoded data, kept on disk |
| `dataset` | `Dataset`, `DataSplits` |
| `split` | what is trained on and what is held out |
| `folds` | all images in folds, for k-fold cross-validation |
| `check`, `duplicates`, `page` | what is wrong with a source, in words and as a page |
| `augment`, `trivial`, `mix`, `corrupt` | pure functions on batches of images |
"""
