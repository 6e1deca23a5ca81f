"""The command line: the only room that parses arguments and prints.

| module | holds |
|---|---|
| `commands` | the commands by name; the answers that need no typer |
| `main` | the program of these commands, and what becomes of errors |
| `look` | `models`, `summary`, `recipes`, `data` |
| `new` | `new network` |
| `train` | `train`, `resume`, `evaluate` |
| `entrants` | networks, recipes and settings that `plan` and `compare` are told |
| `plan`, `compare`, `report` | the commands of these names |
| `compared` | what `compare` and `report` found, written and printed |
| `search`, `searching` | `search`, and how it is shown |
| `ship` | `export`, `predict`, `bench`, `demo`, `push`, `pull` |
| `hints` | the line to type instead of a wrong one |
| `answers` | what `predict` writes |
| `options` | options that several commands share |
| `show` | text, tables, JSON |
| `progress` | bars and lines while a command works |
"""
