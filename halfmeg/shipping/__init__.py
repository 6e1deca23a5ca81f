<<<<<<< HEAD
"""A trained network leaves the program: exported, proved, tried out.

| module | holds |
|---|---|
| `onnx` | ONNX in float32 and int8 |
| `export` | run folder → bundle, each file proved before it gets its name |
| `predict` | classes of a user's own images |
| `bench` | speed and memory of a bundle in each runtime |
| `demo` | a local page that classifies images |
"""
=======
"""From a trained network to where it runs."""
>>>>>>> 7d9eb79 (Trace any network to a graph of nine operators and fold it into steps)
