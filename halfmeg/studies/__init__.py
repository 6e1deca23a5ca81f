"""Many runs, and what they say together.

| module | holds |
|---|---|
| `cluster` | runs as tasks of a Ray cluster |
| `pool` | processes that train several runs at once |
| `folder` | what a study's folder holds, and whether it can hold another |
| `study` | many runs in one folder; trains what is missing |
| `workers` | how they are trained: here, stacked, in processes |
| `pooled` | the variance between seeds, from all pairs of a study |
| `stats` | intervals and tests of paired runs |
| `resampled` | the same of folds |
| `power` | what a study can see, how many seeds it takes, when a growing one may be read |
| `reading` | how a study is read: level, margin, looks |
| `trials` | how many settings were tried before, counted |
| `measure` | robustness and costs of trained networks |
| `loaded` | runs loaded to be compared, of the same data and what they name |
| `entrant` | what the runs of one network and recipe say together |
| `verdict` | the difference of two entrants, in numbers and words |
| `letters` | groups of networks that are not told apart |
| `compare` | the comparison of all |
| `sequential` | a study that grows until every pair is decided |
| `plan` | what a study could see, before it is trained |
| `auto` | `train auto`: network, image size, batch and epochs from data and time |
| `caveats` | what a reader has to know beside the verdicts |
| `figures`, `tables`, `page` | pictures, tables, the HTML page and its Markdown |
| `ranking`, `sets` | several data sets: ranks, and the page above the studies |
"""
