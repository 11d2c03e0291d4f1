"""A pipeline written on the spot and installed the way a third party's would be."""

from __future__ import annotations

from pathlib import Path


def packaged(folder: Path, name: str, kind: str, source: str) -> Path:
    """A folder for sys.path that holds the pipeline `test-NAME`, the class `kind` of the module NAME_test_pipeline."""
    stem = name.replace("-", "_")
    info = folder / f"{stem}-1.dist-info"
    info.mkdir(parents=True)
    (folder / f"{stem}_test_pipeline.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[genkit.pipelines]\ntest-{name} = {stem}_test_pipeline:{kind}\n")
    return folder
