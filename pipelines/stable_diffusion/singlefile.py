from __future__ import annotations
from pathlib import Path
from typing import Any
import torch
from genkit.errors import ModelError
def read(file: Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    raise ModelError(f"{file}: single files are not read yet")
