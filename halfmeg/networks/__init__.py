"""The networks: what `model=` may name, built, counted and described.

| module | holds |
|---|---|
| `layers` | layers that several families share |
| `convolutions` | a convolution computed in other ways |
| `ways` | layers computed so while a network trains, whatever code calls them |
| `study` | the four networks of the published study |
| `he2015` | ResNet-20, ResNet-32 and ResNet-56, and public checkpoints of them |
| `banbury2021` | ResNet-8 of MLPerf Tiny |
| `huang2017` | DenseNet-BC-40 |
| `sandler2018` | MobileNetV2 |
| `trockman2022` | ConvMixer |
| `gated` | the depthwise-gated family |
| `hassani2021` | CCT-2, a small vision transformer |
| `families` | networks whose widths, depths and resolution are settings |
| `floors` | logistic regression and a perceptron |
| `whitened` | `sprint` and `record`, and residual stages behind a whitening layer |
| `protocol` | what a network may say about itself, and what holds where it does not |
| `own` | a network of the user's own, built from its place |
| `example` | a network to start from, which `halfmeg new network` writes |
| `trial` | such a network tried out, each fault one line |
| `leaves` | what a loss depends on, and where a network keeps it |
| `table` | `MODELS` and `build_model` |
| `macs` | multiply-accumulates, operator by operator |
| `summary` | layer table, parameters, multiply-accumulates |
| `graph` | any network as a graph of few operators |
| `values` | tensors of a traced program as values of that graph |
| `lowering` | each operator of a traced program as nodes |
| `mixing` | LayerNorm, softmax and attention likewise |
| `trace` | a module traced by torch.export |
| `simplify` | normalization, functions and poolings folded: the passes over an image |
| `arena` | places in one stretch of memory for maps |
| `micro` | the arena that TFLite Micro would need |
| `memory` | RAM and flash of a network in C, to the byte |
"""
