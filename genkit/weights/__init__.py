"""A model reference (alias, hub id, folder, file) -> verified tensors.

    refs.py     what a reference means, where it lies on this machine, its digest
    remote.py   the hub and torchvision: the only code that fetches, and only what was named
    files.py    safetensors and pickled checkpoints, in and out
    fit.py      tensors -> module, with one line on what does not fit

Nothing is unpickled beyond tensors: `torch.load(weights_only=True)`, and no way around it.
No torch is imported until tensors are read, so that a pipeline can list its models in its class body.
"""

from genkit.weights.files import metadata, read, write
from genkit.weights.fit import load_into, looks_like
from genkit.weights.refs import Model, digest, here, locate

__all__ = ["Model", "digest", "here", "load_into", "locate", "looks_like", "metadata", "read", "write"]
