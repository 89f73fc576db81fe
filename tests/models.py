"""Tiny model files and records for tests of the store: well-formed headers, no weights worth mentioning."""

import hashlib
import json
import struct
from pathlib import Path

from nanollama.store.names import Digest, ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record, RecordFile


def gguf_bytes(architecture: str = "llama", **texts: str) -> bytes:
    """A GGUF file with one tensor of 2 x 32 numbers and a few text keys (``__`` stands for a full stop)."""
    pairs = {"general.architecture": architecture} | {k.replace("__", "."): v for k, v in texts.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs) + 1)
    for key, value in pairs.items():
        head += _string(key) + struct.pack("<I", 8) + _string(value)
    head += _string(f"{architecture}.context_length") + struct.pack("<II", 4, 128)
    head += _string("output.weight") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(2 * 32 * 4)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def make_gguf(path: Path, **texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes(**texts))
    return path


def make_checkpoint(folder: Path) -> Path:
    """A folder in the Hugging Face layout with one tensor in two shards' index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": 32, "max_position_embeddings": 64})
    )
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 32], "data_offsets": [0, 256]}}).encode()
    header += b" " * (-len(header) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(256))
    return folder


def digest_of(path: Path) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")


def record_for(path: Path, name: str, *, owned: bool = False, recipe: Recipe | None = None) -> Record:
    """A record of one GGUF file."""
    size, digest = path.stat().st_size, digest_of(path)
    return Record(
        name=ModelName.parse(name),
        format="gguf",
        path=path,
        size=size,
        digest=digest,
        modified=1000.25,
        owned=owned,
        source=None,
        recipe=recipe or Recipe(),
        files=(RecordFile(path.name, size, digest),),
    )
