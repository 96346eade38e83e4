"""Run in the reference's environment: token ids of texts by ps3-torch's own tokenizer class.

    python run_peer_tokenizer.py REQUEST.json      {"texts": [..], "cases": {name: {"tokenizer_name", "context_length", "clean"}}}
prints {name: [[ids of a text], ..]} as one line of JSON.
"""
import json
import sys
import warnings

warnings.filterwarnings("ignore")
import peer_torchvision  # noqa: F401
from ps3.tokenization_ps3 import PS3Tokenizer

with open(sys.argv[1], encoding="utf-8") as file:
    request = json.load(file)
print(json.dumps({name: PS3Tokenizer(**settings)(request["texts"]).tolist() for name, settings in request["cases"].items()}))
