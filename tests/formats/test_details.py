import pytest

from models import make_checkpoint, make_gguf
from nanollama.errors import FormatError, ModelNotFoundError
from nanollama.formats.details import FILE_TYPE_NAMES, TensorLine, read_details
from nanollama.quant.plan import FILE_TYPES


def test_the_details_of_a_gguf_come_from_its_header(tmp_path):
    details = read_details(make_gguf(tmp_path / "a.gguf", tokenizer__chat_template="{{ x }}"))
    assert (details.format, details.architecture, details.parameters) == ("gguf", "llama", 64)
    assert (details.quantization, details.context_length, details.embedding_length) == ("F32", 128, None)
    assert details.template == "{{ x }}"
    assert details.tensors == (TensorLine("output.weight", (2, 32), "F32"),)
    assert details.metadata["general.architecture"] == "llama"


def test_the_details_of_a_folder_come_from_its_config_and_headers(tmp_path):
    folder = make_checkpoint(tmp_path / "x")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ y }}"}')
    details = read_details(folder)
    assert (details.format, details.architecture, details.parameters) == ("safetensors", "llama", 64)
    assert (details.quantization, details.context_length, details.embedding_length) == ("F32", 64, 32)
    assert details.template == "{{ y }}"
    (folder / "chat_template.jinja").write_text("{{ z }}")
    assert read_details(folder).template == "{{ z }}"


def test_what_is_no_model_is_an_error(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"nothing")
    with pytest.raises(FormatError):
        read_details(tmp_path / "a.gguf")
    with pytest.raises(ModelNotFoundError):
        read_details(tmp_path)


def test_every_type_that_a_file_can_be_quantized_to_has_its_name():
    for name, number in FILE_TYPES.items():
        assert FILE_TYPE_NAMES[number].startswith(name)


@pytest.mark.model
def test_arrays_of_a_real_vocabulary_are_not_decoded(smollm2_path):
    details = read_details(smollm2_path)
    assert details.metadata["tokenizer.ggml.tokens"] is None
    assert details.parameters == 134_515_008
    assert (details.quantization, details.context_length, details.embedding_length) == ("Q4_1", 8192, 576)
