"""The model checker: restricted Python -> IR -> engines; reductions; traces. It knows nothing of memory."""
