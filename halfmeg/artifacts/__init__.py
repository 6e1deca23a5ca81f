"""What lies on disk, written whole or not at all, and read without trust.

| module | holds |
|---|---|
| `environment` | command, commit, versions, machine |
| `chosen` | what a run's `auto` settings came to |
| `seen` | which images a network was trained on |
| `inherited` | what a run takes over from the bundles that it learns from |
| `weights` | weights, logits and checkpoints |
| `sources` | Python of the user's own, kept as text in the run folder |
| `rebuild` | a trained network from its weights and what is said of it |
| `facts` | what is read of a run folder's JSON |
| `metrics` | what was measured after each epoch of a run |
| `readings` | when and for what a run's test set was read |
| `writer` | what a process writes into a run folder, or nothing |
| `refusals` | what is said of a folder that is no run or bundle |
| `run` | the run folder |
| `graph` | an exported graph run by onnxruntime |
| `bundle` | a trained network as a folder that needs nothing else |
| `markdown` | user text in Markdown, shown as it is |
| `hub` | bundles to and from the Hugging Face hub |
"""
