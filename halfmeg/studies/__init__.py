"""Many runs, and what they say together.

| module | holds |
|---|---|
| `cluster` | runs as tasks of a Ray cluster |
| `study` | many runs in one folder; trains what is missing |
| `stats` | intervals and tests of paired runs |
| `measure` | robustness and costs of trained networks |
| `entrant` | what the runs of one network and recipe say together |
| `verdict` | the difference of two entrants, in numbers and words |
| `compare` | the comparison of all |
| `figures`, `page` | pictures, the HTML page and its Markdown |
"""
