"""Writes down what pip was asked for, refuses whatever could change the JAX that is there.

gptj_lab is installed by links, so that the next session on this disk has it.
"""

import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(os.environ["GPTJ_LAB_ROOT"]) / "tests"))
import new_session  # noqa: E402

arguments = sys.argv[1:]
with open(os.environ["PIP_RECORD"], "a") as record:
    record.write(json.dumps(arguments) + "\n")
held = {}
for name in ("jax", "jaxlib", "numpy", "protobuf", "ipykernel", "ipywidgets"):
    try:
        held[name] = f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        continue
others = [a for a in arguments if re.split(r"\W", a)[0] in held and a not in held.values()]
if others or {"--upgrade", "-U", "--force-reinstall"} & set(arguments):
    sys.exit(f"this could change what Colab brings: {arguments}")
if missing := [pin for pin in held.values() if pin not in arguments]:
    sys.exit(f"nothing keeps {missing[0]} where it is: {arguments}")
if not any(argument.startswith("gptj_lab[colab] @ https://github.com/") for argument in arguments):
    sys.exit(f"gptj_lab is not asked of GitHub: {arguments}")
new_session.linked(new_session.site_packages(Path(sys.prefix)))
