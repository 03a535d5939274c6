"""The VICRegL method: tensors in, losses out. No processes, no printing; files only where weights are imported.

Importing the package, its `config` and its `errors` loads neither torch nor timm: programs that only read options
start at once.
"""
