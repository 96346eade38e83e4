#!/bin/sh
# Make a virtual environment DIR that runs the public reference implementation, ps3-torch 0.1.3, on a CPU.
# Its versions are pinned: numbers are compared with these. Use: sh tests/conformance/install_peer.sh DIR
set -eu
dir=${1:?usage: install_peer.sh DIR}
pip="$dir/bin/python -m pip install -q --disable-pip-version-check"
"${PYTHON:-python3}" -m venv "$dir"
$pip torch==2.13.0 "transformers[sentencepiece]==4.49.0" einops ftfy accelerate tiktoken pillow==12.1.0
# without dependencies: they would ask for a torchvision build of another torch, whose compiled operators PS3 never calls
$pip --no-deps ps3-torch==0.1.3 timm==1.0.15 torchvision==0.28.0
cp "$(dirname "$0")/peer_torchvision.py" "$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/"
"$dir/bin/python" -W ignore -c 'import peer_torchvision, ps3; print("ps3-torch is ready:", ps3.__file__)'
