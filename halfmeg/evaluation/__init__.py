"""From a network and images to numbers.

| module | holds |
|---|---|
| `precision` | float32 or bfloat16 |
| `evaluate` | logits, accuracy, loss, confusion |
| `calibration` | calibration and the temperature that mends it |
| `cost` | latency and throughput, measured in turn |
| `explain` | Grad-CAM: where a network looked |
"""
