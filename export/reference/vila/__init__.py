"""VILA-HD: a language model that sees a frame whole, then closely where the question needs it. One file per part.

config.py and chat.py import no torch; model.py is the place to start. Numbers are those of the public model to 1e-4 of the
largest value; tests/test_vila_golden.py measures it.
Source: NVlabs/VILA @ b760c34 with ps3-torch 0.1.3; "Scaling Vision Pre-Training to 4K Resolution", arXiv 2503.19903.
"""
