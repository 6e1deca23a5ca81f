"""From a config and data to a trained run.

| module | holds |
|---|---|
| `recipes` | functions that return configs |
| `plan` | order, sizes, batches and seeds of every epoch, from config and counts alone |
| `own` | a loss, an optimizer, a transform of the user's own |
| `optim` | optimizers, schedules, averaged weights |
| `distributed` | one run over several processes |
| `selection` | the images that an epoch trains on: all, or the hardest |
| `batches` | images and labels of each step |
| `distill`, `loss` | a teacher's answers; the loss of labels, with or without them |
| `stateful`, `state` | what a checkpoint holds |
| `listen`, `stopping`, `process` | who is told, how a run is stopped, settings of the process |
| `totals` | loss, right answers and time of an epoch |
| `measured` | what was measured on this machine, kept in the cache |
| `kernels` | the fastest way of each convolution |
| `compiling` | torch.compile, and whether it is worth its time |
| `choice` | what a run's `auto` settings come to |
| `initial` | the weights of a bundle that a run starts from |
| `job` | a run set up, of these parts |
| `loop` | the training loop, on one screen |
| `outcome` | what is measured after an epoch and at the end |
| `fit` | `fit` and `resume`: a run from its start or a checkpoint to its end |
| `labels` | a recipe trained on folds, to find likely wrong labels |
| `stack` | several seeds at once in one process, through the same loop |
"""
