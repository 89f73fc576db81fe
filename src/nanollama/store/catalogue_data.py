"""Rows of plain text, one a well-known model: its name in, the hub's repository that has it out.

A row names a repository and the quantization to take from it, not a file: size, SHA-256 and commit are what
the hub states when the model is pulled, and are written down then. Only files that were seen are pinned here
or in ``catalogue.py``; nothing is guessed.
"""

HUB_MODELS: tuple[tuple[str, str, str, str], ...] = (
    # name, repository, quantization, licence
    ("tinyllama:1.1b", "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", "Q4_K_M", "Apache-2.0"),
    ("smollm2:360m", "bartowski/SmolLM2-360M-Instruct-GGUF", "Q4_K_M", "Apache-2.0"),
    ("smollm2:1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "Q4_K_M", "Apache-2.0"),
    ("qwen2.5:0.5b", "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "Q4_K_M", "Apache-2.0"),
    ("qwen2.5:1.5b", "Qwen/Qwen2.5-1.5B-Instruct-GGUF", "Q4_K_M", "Apache-2.0"),
    ("qwen2.5:3b", "Qwen/Qwen2.5-3B-Instruct-GGUF", "Q4_K_M", "Qwen Research License"),
    ("qwen2.5:7b", "bartowski/Qwen2.5-7B-Instruct-GGUF", "Q4_K_M", "Apache-2.0"),
    ("qwen3:0.6b", "unsloth/Qwen3-0.6B-GGUF", "Q4_K_M", "Apache-2.0"),
    ("qwen3:1.7b", "unsloth/Qwen3-1.7B-GGUF", "Q4_K_M", "Apache-2.0"),
    ("qwen3:4b", "Qwen/Qwen3-4B-GGUF", "Q4_K_M", "Apache-2.0"),
    ("qwen3:8b", "Qwen/Qwen3-8B-GGUF", "Q4_K_M", "Apache-2.0"),
    ("llama3.1:8b", "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "Q4_K_M", "Llama 3.1 Community License"),
    ("llama3.2:1b", "bartowski/Llama-3.2-1B-Instruct-GGUF", "Q4_K_M", "Llama 3.2 Community License"),
    ("llama3.2:3b", "bartowski/Llama-3.2-3B-Instruct-GGUF", "Q4_K_M", "Llama 3.2 Community License"),
    ("mistral:7b", "bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Q4_K_M", "Apache-2.0"),
    ("gemma3:1b", "ggml-org/gemma-3-1b-it-GGUF", "Q4_K_M", "Gemma Terms of Use"),
    ("gemma3:4b", "ggml-org/gemma-3-4b-it-GGUF", "Q4_K_M", "Gemma Terms of Use"),
    ("phi3:3.8b", "microsoft/Phi-3-mini-4k-instruct-gguf", "q4", "MIT"),
    ("phi4-mini:3.8b", "bartowski/microsoft_Phi-4-mini-instruct-GGUF", "Q4_K_M", "MIT"),
    ("deepseek-r1:1.5b", "bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF", "Q4_K_M", "MIT"),
    ("deepseek-r1:7b", "bartowski/DeepSeek-R1-Distill-Qwen-7B-GGUF", "Q4_K_M", "MIT"),
    (
        "deepseek-r1:8b",
        "bartowski/DeepSeek-R1-Distill-Llama-8B-GGUF",
        "Q4_K_M",
        "MIT, on Llama 3.1 Community License",
    ),
    ("nomic-embed-text:v1.5", "nomic-ai/nomic-embed-text-v1.5-GGUF", "Q8_0", "Apache-2.0"),
    ("all-minilm:22m", "second-state/All-MiniLM-L6-v2-Embedding-GGUF", "Q8_0", "Apache-2.0"),
)

EMBEDDING_MODELS = frozenset({"nomic-embed-text", "all-minilm"})
"""Those that generate no text. They are known, so that whoever asks for one is told what is the matter."""

ALIASES: dict[str, str] = {
    "tinyllama": "tinyllama:1.1b",
    "smollm2": "smollm2:135m",
    "qwen2.5": "qwen2.5:7b",
    "qwen3": "qwen3:8b",
    "llama3.1": "llama3.1:8b",
    "llama3.2": "llama3.2:3b",
    "mistral": "mistral:7b",
    "gemma3": "gemma3:4b",
    "phi3": "phi3:3.8b",
    "phi3:mini": "phi3:3.8b",
    "phi4-mini": "phi4-mini:3.8b",
    "deepseek-r1": "deepseek-r1:8b",
    "nomic-embed-text": "nomic-embed-text:v1.5",
    "all-minilm": "all-minilm:22m",
    "all-minilm:l6-v2": "all-minilm:22m",
}
"""What a name without a tag, or with another tag for the same thing, stands for."""
