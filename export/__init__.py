"""From a PS3 checkpoint to an engine.plan bundle: the model in PyTorch, its networks, their export and the checks of it.

Needs the `export` extra. Nothing in the SDK imports this package.
"""
