"""Places of Python that a user names: a network, a recipe, a loss of one's own.

| place | stands for |
|---|---|
| `FILE.py:NAME` | what a file calls NAME |
| `package.module:NAME` | what a module calls NAME, found as Python finds it, or in this folder |
| `timm:NAME` | a network of timm |
| `python:NAME` | an object that was handed over in this process and stands in no file |

Python runs only where the user named its place. What a run folder keeps is text to read, with its
hash; nothing is loaded from there.

| module | holds |
|---|---|
| `place` | what a place is, and where its file lies |
| `settings` | a network's settings behind its name, and the values that its parameters declare |
| `definitions` | what of a text a name comes to |
| `source` | the text that stands there, and its hash |
| `current` | whether Python has imported what the text says now |
| `load` | what stands there, loaded and called, each fault one line |
| `draws` | the generators that it draws from, seeded |
"""
