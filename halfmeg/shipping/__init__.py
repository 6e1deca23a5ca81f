"""A trained network leaves the program: exported, proved, tried out.

| module | holds |
|---|---|
| `render` | files of `templates/` filled in |
| `preprocess` | what happens to an image before the network, in words and as a program |
| `onnx` | ONNX in float32, and in int8 by onnxruntime's quantizer |
| `operations` | what a graph of integers is made of |
| `integer` | int8 as integers, and their oracle in NumPy |
| `quantize` | a trained network in integers, calibrated on images |
| `integer_onnx` | the integers as ONNX |
| `answered` | those integers and their answers, which C and the page must give too |
| `c`, `c_constants` | the integers as C |
| `build` | that C compiled and run: its proof |
| `device` | that C on an emulated Cortex-M |
| `unfamiliar` | which images are unfamiliar, for C and the page |
| `web` | that C as WebAssembly in one page, and its proof |
| `finetune` | int8 trained on behind its own rounding |
| `int8` | the int8 file of a bundle, from the integers or by a library |
| `program` | the network as torch.export's graph, for the converters below |
| `litert` | the network as a LiteRT file, run there and on TFLite Micro |
| `executorch` | the network as ExecuTorch programs, run there |
| `proof` | what the ONNX files do on held-out images |
| `verify` | a bundle's ONNX files bounded, and compared with its weights |
| `targets` | what is written beside ONNX, a row for each target |
| `trained` | what is exported, of a run or of a bundle |
| `export` | run folder → bundle, each file proved before it gets its name |
| `predict` | classes of a user's own images |
| `bench` | speed and memory of a bundle in each runtime |
| `gate` | who may ask the page, and how long uploads stay |
| `demo` | a local page that classifies images |
"""
