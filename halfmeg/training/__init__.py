"""From a config and data to a trained run.

| module | holds |
|---|---|
| `recipes` | functions that return configs |
| `plan` | order, sizes, batches and seeds of every epoch, from config and counts alone |
| `optim` | optimizers, schedules, averaged weights |
| `selection` | the images that an epoch trains on, where that is not all |
| `distill` | a teacher's answers, learned beside the labels |
| `distributed` | one run over several processes |
| `listen`, `stopping`, `process` | who is told, how a run is stopped, settings of the process |
| `job` | a run set up |
| `fit` | `fit` and `resume`: the loop |
| `stack` | several seeds at once in one process |
"""
