#!/usr/bin/env bash
# Install Sluice with the CPU build of vLLM into the interpreter given. usage: install_cpu.sh PYTHON
set -euo pipefail
python=$1
here=$(cd "$(dirname "$0")/.." && pwd)
pip() { "$python" -m pip "$@" --disable-pip-version-check --quiet; }

# torch's CPU build carries a local version tag that the main index does not have; a configured
# local wheel may, so plain pip goes first and PyTorch's own CPU index second.
pip install -e "${here}[cpu,dev]" || {
  echo "no CPU build of torch there: asking PyTorch's own index as well"
  pip install -e "${here}[cpu,dev]" --extra-index-url https://download.pytorch.org/whl/cpu
}
# NIXL's metadata asks for CUDA packages that a CPU machine does not need.
pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1
# These come along as CUDA builds and break `import transformers`; vLLM serves text without them.
pip uninstall --yes torchvision torchaudio torchcodec
