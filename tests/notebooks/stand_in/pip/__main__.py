"""Writes down what pip was asked for, and refuses whatever could change the JAX that is there."""

import importlib.metadata
import json
import os
import re
import sys

arguments = sys.argv[1:]
refuse = os.environ.get("PIP_REFUSES_FIRST") and not os.path.exists(os.environ["PIP_RECORD"])
with open(os.environ["PIP_RECORD"], "a") as record:
    record.write(json.dumps(arguments) + "\n")
plain = [a for a in arguments if re.match(r"(jax|jaxlib|libtpu|numpy)\b", a)]
if plain or "--upgrade" in arguments or "-U" in arguments:
    sys.exit(f"this could change what Colab brings: {arguments}")
if "--no-deps" not in arguments:
    if "-c" not in arguments:
        sys.exit(f"nothing keeps JAX where it is: {arguments}")
    kept = open(arguments[arguments.index("-c") + 1]).read().splitlines()
    if f"jax=={importlib.metadata.version('jax')}" not in kept:
        sys.exit("the constraints don't hold jax")
if refuse:
    sys.exit("stands in for a conflict with what Colab brings")
