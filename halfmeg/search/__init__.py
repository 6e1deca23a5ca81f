"""The search: the best network for some images within a budget, in the time there is.

| module | holds |
|---|---|
| `space` | what is drawn from, as one table |
| `budget` | limits, and what a network costs before it is trained |
| `schedule` | how the time is spent: epochs, halving, the last comparison |
| `segment` | a part of a run, from where it was up to an epoch |
| `record`, `journal` | what is kept: `search.json`, the clock; the journal of trials |
| `lanes` | where trials are trained: here, or in several processes |
| `state` | a search under way: what a candidate costs and takes |
| `vary` | candidates made of others, and brought to the size of the limits |
| `trials` | the engine |
| `front` | what nothing else beats, and which neighbours are told apart |
| `finish` | the winner against its baselines |
| `plan` | what the time allows, from a few timed steps |
| `figures`, `page` | the page |
| `run` | a search from its start, or from where it was, to its end |
"""
