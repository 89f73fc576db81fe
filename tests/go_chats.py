"""Templates as Ollama publishes them, each with the texts that it renders conversations to."""
# ruff: noqa: E501, RUF001  # templates stand as they are published, DeepSeek's with fullwidth bars

from dataclasses import dataclass

from nanollama.types import Message


def chat(*turns: str) -> list[Message]:
    """Messages from texts that begin with the first letter of a role: ``"s:Be brief."``."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(roles[turn[0]], turn[2:]) for turn in turns]


ONE = chat("u:Hi")
TOLD = chat("s:Be brief.", "u:Hi")
LONG = chat("s:Be brief.", "u:Hi", "a:Hello!", "u:Bye")
TWICE = chat("u:Hi", "u:there")


@dataclass(frozen=True)
class Family:
    """A Go template, and what it makes of the conversations above."""

    go: str
    one: str
    told: str
    long: str
    twice: str


FAMILIES = {
    "chatml": Family(
        """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
""",
        one="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        told="<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        long="<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        twice="<|im_start|>user\nHi\n\nthere<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama2": Family(
        """[INST] {{ if .System }}<<SYS>>
{{ .System }}
<</SYS>>

{{ end }}{{ .Prompt }} [/INST] {{ .Response }}</s><s>""",
        one="[INST] Hi [/INST] ",
        told="[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] ",
        long="[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello!</s><s>[INST] Bye [/INST] ",
        twice="[INST] Hi\n\nthere [/INST] ",
    ),
    "llama2 without a response": Family(
        "[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST]\n",
        one="[INST] <<SYS>><</SYS>>\n\nHi [/INST]\n",
        told="[INST] <<SYS>>Be brief.<</SYS>>\n\nHi [/INST]\n",
        long="[INST] <<SYS>>Be brief.<</SYS>>\n\nHi [/INST]\nHello![INST] <<SYS>><</SYS>>\n\nBye [/INST]\n",
        twice="[INST] <<SYS>><</SYS>>\n\nHi\n\nthere [/INST]\n",
    ),
    "llama3": Family(
        """{{ if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>

{{ .Prompt }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

{{ .Response }}<|eot_id|>""",
        one="<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        told="<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        long="<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        twice="<|start_header_id|>user<|end_header_id|>\n\nHi\n\nthere<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama3.1": Family(
        """{{- if or .System .Tools }}<|start_header_id|>system<|end_header_id|>
{{- if .System }}

{{ .System }}
{{- end }}
{{- if .Tools }}

Cutting Knowledge Date: December 2023
{{- end }}<|eot_id|>
{{- end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>
{{- if and $.Tools $last }}

Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.

{{ range $.Tools }}
{{- . }}
{{ end }}
Question: {{ .Content }}<|eot_id|>
{{- else }}

{{ .Content }}<|eot_id|>
{{- end }}{{ if $last }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>
{{- if .ToolCalls }}
{{ range .ToolCalls }}
{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}
{{- else }}

{{ .Content }}
{{- end }}{{ if not $last }}<|eot_id|>{{ end }}
{{- else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>

{{ .Content }}<|eot_id|>{{ if $last }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}
{{- end }}""",
        one="<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        told="<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        long="<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        twice="<|start_header_id|>user<|end_header_id|>\n\nHi\n\nthere<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": Family(
        """{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}
{{- if and (le (len (slice $.Messages $index)) 2) $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]
{{- end }}[INST] {{ if and (eq (len (slice $.Messages $index)) 1) $.System }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .Content }} {{ .Content }}
{{- else if .ToolCalls }}[TOOL_CALLS] [
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{- end }}]
{{- end }}</s>
{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ .Content }}}[/TOOL_RESULTS]
{{- end }}
{{- end }}""",
        one="[INST] Hi[/INST]",
        told="[INST] Be brief.\n\nHi[/INST]",
        long="[INST] Hi[/INST] Hello!</s>[INST] Be brief.\n\nBye[/INST]",
        twice="[INST] Hi\n\nthere[/INST]",
    ),
    "gemma": Family(
        """<start_of_turn>user
{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}<end_of_turn>
<start_of_turn>model
{{ .Response }}<end_of_turn>
""",
        one="<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        told="<start_of_turn>user\nBe brief. Hi<end_of_turn>\n<start_of_turn>model\n",
        long="<start_of_turn>user\nBe brief. Hi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        twice="<start_of_turn>user\nHi\n\nthere<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma with messages": Family(
        """{{- $system := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}
{{- if not $system }}{{ $system = .Content }}
{{- else }}{{ $system = printf "%s\\n\\n%s" $system .Content }}
{{- end }}
{{- else if eq .Role "user" }}<start_of_turn>user
{{- if $system }}
{{ $system }}
{{- $system = "" }}
{{- end }}
{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
""",
        one="<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        told="<start_of_turn>user\nBe brief.\nHi<end_of_turn>\n<start_of_turn>model\n",
        long="<start_of_turn>user\nBe brief.\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        twice="<start_of_turn>user\nHi\n\nthere<end_of_turn>\n<start_of_turn>model\n",
    ),
    "gemma3": Family(
        """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if or (eq .Role "user") (eq .Role "system") }}<start_of_turn>user
{{ .Content }}<end_of_turn>
{{ if $last }}<start_of_turn>model
{{ end }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}{{ if not $last }}<end_of_turn>
{{ end }}
{{- end }}
{{- end }}""",
        one="<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        told="<start_of_turn>user\nBe brief.<end_of_turn>\n<start_of_turn>user\nHi<end_of_turn>\n"
        "<start_of_turn>model\n",
        long="<start_of_turn>user\nBe brief.<end_of_turn>\n<start_of_turn>user\nHi<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n",
        twice="<start_of_turn>user\nHi\n\nthere<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi3": Family(
        """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
""",
        one="<|user|>\nHi<|end|>\n<|assistant|>\n",
        told="<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n",
        long="<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\n",
        twice="<|user|>\nHi\n\nthere<|end|>\n<|assistant|>\n",
    ),
    "zephyr": Family(
        """{{- if .System }}
<|system|>
{{ .System }}
</s>
{{- end }}
<|user|>
{{ .Prompt }}
</s>
<|assistant|>
""",
        one="\n<|user|>\nHi\n</s>\n<|assistant|>\n",
        told="\n<|system|>\nBe brief.\n</s>\n<|user|>\nHi\n</s>\n<|assistant|>\n",
        long="\n<|system|>\nBe brief.\n</s>\n<|user|>\nHi\n</s>\n<|assistant|>\nHello!"
        "\n<|user|>\nBye\n</s>\n<|assistant|>\n",
        twice="\n<|user|>\nHi\n\nthere\n</s>\n<|assistant|>\n",
    ),
    "tinyllama": Family(
        "<|system|>\n{{ .System }}</s>\n<|user|>\n{{ .Prompt }}</s>\n<|assistant|>\n",
        one="<|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n",
        told="<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n",
        long="<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!"
        "<|system|>\n</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
        twice="<|system|>\n</s>\n<|user|>\nHi\n\nthere</s>\n<|assistant|>\n",
    ),
    "alpaca": Family(
        """{{ if .System }}{{ .System }}

{{ end }}{{ if .Prompt }}### Instruction:
{{ .Prompt }}

{{ end }}### Response:
{{ .Response }}

""",
        one="### Instruction:\nHi\n\n### Response:\n",
        told="Be brief.\n\n### Instruction:\nHi\n\n### Response:\n",
        long="Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n"
        "### Instruction:\nBye\n\n### Response:\n",
        twice="### Instruction:\nHi\n\nthere\n\n### Response:\n",
    ),
    "vicuna": Family(
        """{{- if .System }}{{ .System }}
{{ end }}USER: {{ .Prompt }}
ASSISTANT: {{ .Response }}</s>
""",
        one="USER: Hi\nASSISTANT: ",
        told="Be brief.\nUSER: Hi\nASSISTANT: ",
        long="Be brief.\nUSER: Hi\nASSISTANT: Hello!</s>\nUSER: Bye\nASSISTANT: ",
        twice="USER: Hi\n\nthere\nASSISTANT: ",
    ),
    "deepseek-r1": Family(
        """{{- if .System }}{{ .System }}{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1}}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- else if eq .Role "assistant" }}<｜Assistant｜>{{ .Content }}{{- if not $last }}<｜end▁of▁sentence｜>{{- end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>{{- end }}
{{- end }}""",
        one="<｜User｜>Hi<｜Assistant｜>",
        told="Be brief.<｜User｜>Hi<｜Assistant｜>",
        long="Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>",
        twice="<｜User｜>Hi\n\nthere<｜Assistant｜>",
    ),
    "qwen3": Family(
        """{{- $lastUserIdx := -1 -}}
{{- range $idx, $msg := .Messages -}}
{{- if eq $msg.Role "user" }}{{ $lastUserIdx = $idx }}{{ end -}}
{{- end }}
{{- if or .System .Tools }}<|im_start|>system
{{ if .System }}{{ .System }}
{{ end }}
{{- if .Tools }}# Tools
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
{{- end -}}
<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if (and $.IsThinkSet (and .Thinking (or $last (gt $i $lastUserIdx)))) -}}
<think>{{ .Thinking }}</think>
{{ end -}}
{{ if .Content }}{{ .Content }}
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ if and $.IsThinkSet (not $.Think) -}}
<think>

</think>

{{ end -}}
{{ end }}
{{- end }}""",
        one="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        told="<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        long="<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        twice="<|im_start|>user\nHi\n\nthere<|im_end|>\n<|im_start|>assistant\n",
    ),
}
