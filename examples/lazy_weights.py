"""Weights in an object store as arrays: `lazy_weights.py s3://bucket/model.safetensors NAME` fetches the rows that it prints."""

import json
import sys

import numpy as np

from userfault import paging

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}

if len(sys.argv) != 3:
    sys.exit(f"usage: {sys.argv[0]} FILE_OR_URL NAME")

with paging.open(sys.argv[1], resident="256 MiB") as memory:
    start = 8 + int.from_bytes(memory[:8], "little")
    entry = json.loads(memory[8:start])[sys.argv[2]]
    count = int(np.prod(entry["shape"]))
    flat = np.frombuffer(memory, DTYPES[entry["dtype"]], count, offset=start + entry["data_offsets"][0])
    tensor = flat.reshape(entry["shape"])
    print(tensor.shape, tensor[0, :4].tolist(), tensor[-1, :4].tolist())
    print(memory.stats())
