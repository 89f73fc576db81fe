"""The layout rules hold, and each of them can fail."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def load_rules():
    spec = importlib.util.spec_from_file_location("layout_rules", PROJECT / "scripts/layout_rules.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["layout_rules"] = module
    spec.loader.exec_module(module)
    return module


rules = load_rules()


def test_the_source_tree_keeps_all_layout_rules():
    assert rules.violations(PROJECT / "src/nanollama") == []


def test_every_file_is_looked_at():
    paths = {source.path for source in rules.read_sources(PROJECT / "src/nanollama")}
    assert {"types.py", "store/store.py", "cli/main.py", "backends/torch_ops.py"} <= paths


def fields(count):
    body = "".join(f"    field{n}: int\n" for n in range(count))
    return f"from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Settings:\n{body}"


BAD = [
    ("text/x.py", "\n" * 401, "has 403 lines"),
    ("text/x.py", "def f():\n" + "    a = 1\n" * 60, "f has 61 lines"),
    ("text/x.py", "class A:\n    async def f(self):\n" + "        a = 1\n" * 60, "f has 61 lines"),
    ("text/x.py", fields(13), "Settings has 13 fields"),
    ("store/x.py", "import nanollama.llm", "imports nanollama.llm, which is not below it"),
    ("store/x.py", "def f():\n    from nanollama.engine.engine import Engine", "which is not below it"),
    ("text/x.py", "from nanollama.server import wire", "imports nanollama.server.wire"),
    ("types.py", "from nanollama.store import store", "imports nanollama.store.store"),
    ("llm.py", "from nanollama.cli.main import main", "imports nanollama.cli.main"),
    ("engine/x.py", "from nanollama import LLM", "imports nanollama.LLM"),
    ("store/x.py", "from . import store", "relative import"),
    ("surprise/x.py", "", "belongs to no stage"),
    ("engine/x.py", "import torch", "imports torch at module level"),
    (
        "model/x.py",
        "try:\n    from torch.nn import functional\nexcept ImportError:\n    pass",
        "torch.nn.functional",
    ),
    ("cli/x.py", "import numpy as np", "imports numpy at module level"),
    ("cli/x.py", "from rich.console import Console", "imports rich.console.Console at module level"),
    ("cli/x.py", "class A:\n    import tokenizers", "imports tokenizers at module level"),
    ("store/fetch.py", "import httpx", "imports httpx at module level"),
    ("engine/scheduler.py", "def f():\n    import numpy", "decisions are plain Python"),
    ("cli/x.py", "def f():\n    import httpx", "imports httpx, which only store/fetch.py may"),
    (
        "store/store.py",
        "from urllib.request import urlopen",
        "imports urllib.request.urlopen, which only nobody may",
    ),
    ("store/store.py", "from urllib import request", "imports urllib.request, which only nobody may"),
    ("server/x.py", "import socket", "imports socket"),
    ("text/x.py", "import subprocess", "imports subprocess"),
    ("model/x.py", "import pickle", "imports pickle"),
    (
        "text/x.py",
        "def f():\n    from transformers import AutoTokenizer",
        "imports transformers.AutoTokenizer",
    ),
    ("formats/x.py", "import tarfile", "imports tarfile"),
    ("server/x.py", "import shutil\nshutil.rmtree('a')", "calls shutil.rmtree"),
    ("server/x.py", "def f(path):\n    path.unlink()", "calls path.unlink"),
    ("cli/x.py", "import os\nos.replace('a', 'b')", "calls os.replace"),
    ("cli/x.py", "from pathlib import Path\n(Path('a') / 'b').rename('c')", "calls rename"),
    ("cli/x.py", "import os\nos.environ['XDG_DATA_HOME']", "says where the store lies"),
    ("cli/x.py", "p = '~/.local/share/nanollama/models'", "says where the store lies"),
    ("store/wheels.py", "def f(z):\n    z.extractall('.')", "no archive is unpacked"),
    ("store/x.py", "import shutil\nshutil.unpack_archive('a')", "no archive is unpacked"),
    ("model/x.py", "def f():\n    import torch\n    return torch.load('a')", "no pickled weights"),
    ("model/x.py", "eval('1')", "calls eval"),
    ("model/x.py", "exec('1')", "calls exec"),
    ("model/x.py", "__import__('os')", "calls __import__"),
    ("store/wheels.py", "import subprocess\nsubprocess.run('ls', shell=True)", "passes shell"),
    ("store/wheels.py", "import subprocess\nsubprocess.run('ls', shell=bool(1))", "passes shell"),
    ("cli/x.py", "import os\nos.system('ls')", "no shell"),
    ("formats/x.py", "import numpy as np\nnp.load('a', allow_pickle=True)", "passes allow_pickle"),
    ("text/x.py", "import jinja2\njinja2.Environment()", "templates run in the sandbox only"),
    ("text/x.py", "# TODO: later", "says 'TODO'"),
    ("text/x.py", "def f():\n    raise NotImplementedError", "says 'NotImplementedError'"),
    ("text/x.py", "x = 1  # good enough for now", "says 'for now'"),
]


@pytest.mark.parametrize(("path", "code", "says"), BAD, ids=[f"{path}: {says}" for path, _, says in BAD])
def test_a_file_that_breaks_a_rule_is_reported_with_its_name_and_the_reason(path, code, says, tmp_path):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'"""A module."""\n{code}\n')
    found = rules.violations(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(f"{path}: ")
    assert says in found[0]


def test_a_file_without_a_docstring_is_reported(tmp_path):
    (tmp_path / "types.py").write_text("x = 1\n")
    assert rules.violations(tmp_path) == ["types.py: has no module docstring"]


@pytest.mark.parametrize(
    ("code", "says"), [("#pragma once\n", "does not begin with a comment"), ("// x\n" * 401, "has 401 lines")]
)
def test_a_kernel_file_that_breaks_a_rule_is_reported(code, says, tmp_path):
    (tmp_path / "x.h").write_text(code)
    (found,) = rules.violations(tmp_path)
    assert found.startswith("x.h: ")
    assert says in found


def test_modules_that_import_each_other_are_reported(tmp_path):
    (tmp_path / "text").mkdir()
    for here, there in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"text/{here}.py").write_text(f'"""A module."""\nfrom nanollama.text.{there} import x\n')
    found = rules.violations(tmp_path)
    assert found == [
        "text/a.py: imports itself by way of nanollama.text.b -> nanollama.text.c -> nanollama.text.a"
    ]


GOOD = [
    ("text/x.py", "\n" * 390),
    ("text/x.py", "def f():\n" + "    a = 1\n" * 59),
    ("text/x.py", fields(12)),
    ("store/x.py", "from nanollama.errors import FormatError\nfrom nanollama.formats import gguf"),
    ("cli/x.py", "def f():\n    import numpy, rich"),
    ("cli/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy"),
    ("backends/torch_ops.py", "import torch"),
    ("store/fetch.py", "def f():\n    import httpx"),
    ("store/wheels.py", "import subprocess\nsubprocess.run(['ls'], shell=False)"),
    ("text/x.py", "import re\nre.compile('a')\n'a'.replace('b', 'c')"),
    ("store/wheels.py", "import zipfile\nzipfile.ZipFile('a').open('b')"),
    ("__init__.py", "from nanollama.llm import LLM"),
]


@pytest.mark.parametrize(("path", "code"), GOOD, ids=[f"{path}: {code[:30]!r}" for path, code in GOOD])
def test_a_file_that_keeps_the_rules_is_not_reported(path, code, tmp_path):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'"""A module."""\n{code}\n')
    assert rules.violations(tmp_path) == []


@pytest.mark.parametrize(
    "module",
    [
        *("nanollama", "nanollama.cli.main", "nanollama.types", "nanollama.errors"),
        *("nanollama.store.store", "nanollama.store.fetch", "nanollama.formats.gguf"),
    ],
)
def test_importing_the_light_modules_imports_nothing_slow(module):
    slow = {"torch", "numpy", "tokenizers", "jinja2", "rich", "prompt_toolkit", "httpx", "transformers"}
    code = f"import sys, {module}; print(*sorted({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
