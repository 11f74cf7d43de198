# @title Setup (no need to read)
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

before = [(p.metadata["Name"], p.version) for p in importlib.metadata.distributions()]
spec = importlib.util.find_spec("moe_colab")
if spec is None or spec.origin is None:  # a mere folder of that name has no origin
    for folder in ("..", "moe_colab"):  # a checkout around this notebook, or beside it
        if os.path.exists(f"{folder}/moe_colab/__init__.py"):
            sys.path.insert(0, os.path.abspath(folder))
            break
    else:
        home = "git+REPOSITORY@BRANCH"
        source = os.environ.get("MOE_COLAB_SOURCE", home)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input", source]
        env = {**os.environ, "DISABLE_CUDA": "1", "GIT_TERMINAL_PROMPT": "0"}
        done = subprocess.run(pip, env=env, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr)
            raise RuntimeError(
                f"{source} was not installed, see above: is the internet switched on?"
            )
        importlib.invalidate_caches()

# Installs only what is missing, and shows what fits this machine.
importlib.import_module("moe_colab.notebook").setup(before)
