import pytest

from nanollama.store.choose import choose_gguf, choose_safetensors, quant_of
from nanollama.store.hub import HubEntry
from nanollama.store.transfer import SourceError


def entries(*paths, size=1000):
    return [HubEntry(path, size, None) for path in paths]


def chosen(files):
    return [file.path for file in files]


@pytest.mark.parametrize(
    ("stem", "quant"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M", "Q4_K_M"),
        ("tinyllama-1.1b-chat-v1.0.Q4_K_M", "Q4_K_M"),
        ("smollm2-1.7b-instruct-q4_k_m", "Q4_K_M"),
        ("Phi-3-mini-4k-instruct-q4", "Q4"),
        ("Phi-3-mini-4k-instruct-fp16", "FP16"),
        ("model-IQ2_XXS", "IQ2_XXS"),
        ("Qwen3-4B-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-BF16", "BF16"),
        ("Q8_0", "Q8_0"),
        ("mistral-7b", None),
        ("v1.0", None),
        ("seq4", None),
    ],
)
def test_a_file_name_states_its_quantization_last(stem, quant):
    assert quant_of(stem) == quant


REPO = entries(
    "README.md",
    "m-Q2_K.gguf",
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m.imatrix",
    "mmproj-m-Q8_0.gguf",
    "m-f16.gguf",
)


@pytest.mark.parametrize(
    ("files", "quant", "expected"),
    [
        (REPO, None, "m-Q4_K_M.gguf"),
        (REPO, "Q2_K", "m-Q2_K.gguf"),
        (REPO, "q8_0", "m-Q8_0.gguf"),
        (REPO, "F16", "m-f16.gguf"),
        (REPO, "m-q2_k", "m-Q2_K.gguf"),
        (entries("m-Q8_0.gguf", "m-Q2_K.gguf"), None, "m-Q8_0.gguf"),
        (entries("m-Q2_K.gguf"), None, "m-Q2_K.gguf"),
        (entries("anything.gguf"), None, "anything.gguf"),
        (entries("sub/m-Q4_K_M.gguf", "m-Q8_0.gguf"), None, "sub/m-Q4_K_M.gguf"),
        (entries("m.GGUF"), None, "m.GGUF"),
    ],
)
def test_one_quantization_is_chosen(files, quant, expected):
    assert chosen(choose_gguf(files, quant)) == [expected]


def test_all_parts_of_a_split_file_are_chosen_in_order():
    parts = [f"Q8_0/m-Q8_0-0000{n}-of-00003.gguf" for n in (3, 1, 2)]
    assert chosen(choose_gguf(entries("m-Q2_K.gguf", *parts), "Q8_0")) == sorted(parts)


def test_a_repository_without_gguf_has_none():
    assert choose_gguf(entries("config.json", "model.safetensors", "mmproj-x.gguf"), None) == ()


@pytest.mark.parametrize(
    ("files", "quant", "reason"),
    [
        (REPO, "Q5_K_M", "no GGUF file of quantization Q5_K_M, but F16, Q2_K, Q4_K_M, Q8_0"),
        (
            entries("a-Q2_K.gguf", "b-Q3_K.gguf"),
            None,
            "no GGUF file of quantization Q4_K_M or Q8_0, but Q2_K, Q3_K",
        ),
        (entries("a.gguf", "b.gguf"), None, "but none that their names state"),
        (entries("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"), None, "several files of quantization Q4_K_M; name one"),
        (entries("m-Q8_0-00001-of-00002.gguf"), None, "1 of 2 parts of m-Q8_0"),
        (entries("a/m-Q8_0.gguf", "b/m-Q8_0.gguf"), None, "m-Q8_0.gguf more than once"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(files, quant, reason):
    with pytest.raises(SourceError, match=reason):
        choose_gguf(files, quant)


HOSTILE = [
    "../../../etc/cron.d/evil.gguf",
    "/etc/evil.gguf",
    "a/../../evil.gguf",
    "..\\..\\evil.gguf",
    "C:\\evil.gguf",
    "c:evil.gguf",
    ".gguf",
    ".hidden.gguf",
    "a//evil.gguf",
    "./evil.gguf",
    "-rf.gguf",
    "evil\0.gguf",
    "evil\n.gguf",
    "\u202eevil.gguf",
    "évil.gguf",
    "x" * 300 + ".gguf",
    "a/" * 3 + "../evil.gguf",
    " evil.gguf",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_name_that_could_lead_elsewhere_is_refused(path):
    with pytest.raises(SourceError, match="unsafe name"):
        choose_gguf(entries("good-Q4_K_M.gguf", path), None)


CHECKPOINT = entries(
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "pytorch_model.bin",
    "model.pt",
    "modeling_evil.py",
    "consolidated.safetensors",
    "onnx/model.safetensors",
    "../model.safetensors",
    "README.md",
)


def test_of_a_checkpoint_only_data_is_chosen():
    assert chosen(choose_safetensors(CHECKPOINT)) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ]


def test_all_parts_of_a_checkpoint_are_chosen_with_their_index():
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    files = entries("config.json", "model.safetensors.index.json", "model.safetensors", *reversed(shards))
    assert chosen(choose_safetensors(files)) == ["config.json", "model.safetensors.index.json", *shards]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (entries("README.md"), "neither a GGUF file nor a config.json"),
        (entries("config.json", "pytorch_model.bin"), "no GGUF file and no model.safetensors"),
        (
            entries("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"),
            "1 of 2 parts",
        ),
        (
            entries("config.json", "model.safetensors.index.json", "model-00001-of-99999.safetensors"),
            "1 of 99999 parts",
        ),
        (entries("config.json", "config.json", "model.safetensors"), "config.json more than once"),
        (
            [*entries("model.safetensors"), HubEntry("config.json", 1 << 40, None)],
            "its config.json is larger than 256 MiB",
        ),
    ],
)
def test_a_repository_that_is_no_whole_checkpoint_is_refused(files, reason):
    with pytest.raises(SourceError, match=reason):
        choose_safetensors(files)
