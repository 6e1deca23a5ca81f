"""The networks: what `model=` may name, built, counted and described.

| module | holds |
|---|---|
| `layers` | layers that several families share |
| `study` | the four networks of the published study |
| `he2015` | ResNet-20 and ResNet-32, and public checkpoints of them |
| `whitened` | `sprint` and `record` |
| `protocol` | what a network may say about itself, and what holds where it does not |
| `table` | `MODELS` and `build_model` |
| `summary` | layer table, parameters, multiply-accumulates |
| `graph` | any network as a graph of few operators |
| `values` | tensors of a traced program as values of that graph |
| `lowering` | each operator of a traced program as nodes |
| `trace` | a module traced by torch.export |
| `simplify` | normalization, functions and poolings folded: the passes over an image |
| `memory` | RAM and flash of a network in C, to the byte |
"""
