"""From a network and images to numbers.

| module | holds |
|---|---|
| `precision` | float32 or bfloat16 |
| `evaluate` | logits, accuracy, loss, confusion |
| `calibration` | calibration and the temperature that mends it |
| `confident` | likely wrong labels, from answers given without them |
| `familiarity` | whether an image is like those that a network was trained on |
| `cost` | latency and throughput, measured in turn |
| `explain` | Grad-CAM: where a network looked |
"""
