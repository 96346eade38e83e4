"""The model in plain PyTorch, one file per part; parameter names are those of the public checkpoints.

config.py reads a checkpoint's JSON files and imports no torch; model.py is the place to start for everything else.
"""
