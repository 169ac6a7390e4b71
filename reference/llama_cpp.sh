#!/bin/sh
# Builds llama.cpp, our peer for GGUF files, with its Python binding, into a virtual environment of its own. Half an hour on
# two cores; needs a C++ compiler.
# Usage: reference/llama_cpp.sh [FOLDER [PYTHON]]      (FOLDER defaults to reference/.llama, PYTHON to python3)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/.llama}
python=${2:-python3}
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip="$folder/bin/python -m pip --quiet --disable-pip-version-check"
$pip install scikit-build-core==1.1.2 cmake==4.4.5 ninja==1.13.2 numpy==2.4.6
# From the sources, for this very processor (GGML_NATIVE is on by default), but without AMX: on a virtual machine that
# shows AMX and does not let it be used, the first product ends the process.
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-2} \
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__" \
    $pip install --no-binary llama-cpp-python --no-build-isolation llama-cpp-python==0.3.36
$pip install gguf==0.19.0
"$folder/bin/python" -c 'import llama_cpp; print("ready: llama-cpp-python", llama_cpp.__version__)'
