"""Hostile names and digests from a seed, and what lies around a store before and after they were used.

``WRITTEN_DOWN`` are those that somebody thought of. The others are made of pieces of them, of encodings of
the way out of a folder, and of names and digests in which something is wrong.
"""

import hashlib
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

from models import make_gguf, record_for
from nanollama.store.names import ModelName
from nanollama.store.store import Store

COUNT = 5000
KEPT = "kept:1b"
"""The one model of the store; no hostile text is its name."""

HEX = "0123456789abcdef" * 4
ZEROS = "0" * 64

WAYS_OUT = (
    *("..", "../..", "../../secret", "a/../../secret", "./..", ".../x", "....//x", "..;/x", "/.."),
    *("../" * 40, "..\\..\\secret", "..\\/x", "C:\\x", "C:x", "\\\\host\\share", "\\\\?\\C:\\x"),
    *("//host/share", "Z:/x", "/etc/passwd", "/", "//", "/dev/null", "/dev/zero", "/proc/self/environ"),
    *("/tmp/x", "%2e%2e%2fsecret", "%2E%2E/secret", "..%2fsecret", "%252e%252e%252f", "..%c0%af", "%00"),
    *("a%00b", "%5c..", "\uff0e\uff0e/secret", "\u2024\u2024/x", "..\u2215x", "..\u2044x", "\u202e.."),
    *(
        "\u0661",
        "a\u0301",
        "ﬁ/ﬂ",
        "\uff5e/x",
        "\u212a",
        "İ",
        "\u017f",
        "Å",
        "\U0001f999",
        "\ud800",
        "a\ud800/b",
    ),
    *("\ufeffa", "\u200ba", "a\0b", "\0", "a\nb", "a\r\nb", "\n", "\t", " ", " a", "a ", "\x1b[2J", "\x7f"),
    *("a\n../b", "", "~", "~/m.gguf", "~root", "~root/x", "~nobody/.ssh", "$HOME", "${HOME}/m.gguf"),
    *("%HOME%", "`id`", "$(id)", "-", "--", "-rf", "--delete-file", "--help", "-f", "-f/etc/passwd"),
    *("--name=x", "-q", "--version", "@x", "*", "?", "[a]", "{a,b}", "|id", ";id", "&id", "<x", ">x", "'"),
    *('"', '"""', "#x", "FROM x", "con", "nul", "NUL.gguf", "aux:1", "com1/x", "x/lpt1", "prn.", "x."),
    *(".x", "x:", ":x", "::", "x:y:z", "linked", "linked/m.gguf", "./linked/m.gguf", "linked/../secret"),
    *("../work/linked/x", "m.gguf", "./m.gguf", "../victim/m.gguf", "../home/m.gguf"),
    *("../data/models.gguf", "../models-old/x.gguf", "victim", "socket", "./socket", "./loop", "loop"),
    *("./nothing", "models.json", "../models.json", "models.json.bak", "uploads", "uploads/x", ".lock"),
    *("x.part", "x.part.map", "x.wheels", "library", "library/../x:1", "latest:../x", "hf.co", "hf.co/"),
    *("hf.co/..", "hf.co/../..", "hf.co/a", "hf.co/a/b/c", "hf.co/a/b:../c", "HF.CO/a/..", "hf.co/a/b:c/d"),
    *("hf.co/-a/b", "hf.co/a/b@main", "hf.co//b", "huggingface.co/a/..%2fb", "hf.co/a/b?x"),
    *("https://hf.co/../../x.gguf", "https://hf.co/a/b/resolve/../x.gguf"),
    *("https://hf.co/a/b/blob/main/../x.gguf", "file:///etc/passwd", "http://127.0.0.1:22/x.gguf"),
    *("http://[::1]/x.gguf", "http://x@h/x.gguf", "ftp://h/x", "https://h/../../x.gguf"),
    *("https://h/%2e%2e/%2e%2e.gguf", "https://h/.gguf", "https://h:99999/x.gguf", "gopher://h/x"),
    *("https://", "http:///x.gguf", "https://h/x.gguf#../y", "data:,x", "javascript:x", "localhost:22/a/b"),
    *("127.0.0.1/a/b", "169.254.169.254/a/b", "[::1]/a/b", "0/a/b", "h.co:70000/a/b", "x" * 81, "x" * 300),
    *("x" * 5000, "a/" * 300, "../" * 1500, "é" * 200, "a:" + "b" * 200, "\uff5e/x"),
)

BAD_DIGESTS = (
    *(f"sha256:{ZEROS[1:]}", f"sha256:{ZEROS}0", f"sha256:{HEX.upper()}", f"SHA256:{HEX}", f"sha256-{HEX}"),
    *(f"sha512:{HEX}", f"md5:{HEX[:32]}", HEX, "sha256:", "sha256", ":", f"sha256:{ZEROS[1:]}g"),
    *("sha256:../../secret", "sha256-../../secret", f"sha256:{'../' * 21}0", f"sha256:{'%2e%2e%2f' * 7}0"),
    *(f"sha256:{ZEROS[:61]}/..", f"../sha256:{HEX}", f"/sha256:{HEX}", f"sha256:{HEX}/../x"),
    *(f"sha256:{HEX}\0", f"sha256:{HEX}\n", f" sha256:{HEX}", f"sha256: {HEX[1:]}"),
    *(f"sha256:{ZEROS[1:]}\u0661", f"sha256\uff1a{HEX}", f"sha256:{HEX}" * 100, f"sha256:sha256:{HEX}"),
    *(f"sha256:{HEX}.part", f"@sha256:{HEX}", f"x@sha256:{HEX}", f"sha256:{HEX}", f"sha256:{ZEROS}"),
)

WRITTEN_DOWN = (*WAYS_OUT, *BAD_DIGESTS)

GOOD = ("smol", "qwen:0.6b", "someone/model", "someone/model:q4_k_m", "h.example/a/b:c", "hf.co/a/b:q8_0")


def hostile_texts(seed: object, count: int = COUNT) -> list[str]:
    """``count`` different texts: those written down first, then as many as are made from the seed."""
    found = dict.fromkeys(WRITTEN_DOWN[:count])
    made = _made(random.Random(str(seed)))
    while len(found) < count:
        if (text := next(made)) != KEPT:
            found[text] = None
    return list(found)


def _made(chance: random.Random) -> Iterator[str]:
    short = [text for text in WRITTEN_DOWN if len(text) < 40]
    while True:
        kind = chance.randrange(5)
        if kind == 0:
            yield "".join(chance.choices((*short, "a", "b", "/", ":", "."), k=chance.randint(2, 5)))
        elif kind == 1:
            yield _with(chance.choice(GOOD), chance.choice(short), chance)
        elif kind == 2:
            yield _with(f"sha256:{HEX}", chance.choice(short), chance)
        elif kind == 3:
            digest = "".join(
                chance.choices("0123456789abcdefABCDEFg./%", k=chance.choice((63, 64, 64, 64, 65)))
            )
            yield f"{chance.choice(('sha256:', 'sha256-', 'sha512:', ''))}{digest}"
        else:
            yield _encoded(
                "../" * chance.randint(1, 6) + chance.choice(("secret", "home/m.gguf", "x")), chance
            )


def _with(text: str, piece: str, chance: random.Random) -> str:
    """``text`` in which a few characters at a random place are ``piece``."""
    start = chance.randint(0, len(text))
    return text[:start] + piece + text[start + chance.randint(0, 3) :]


def _encoded(text: str, chance: random.Random) -> str:
    """A way out of a folder in which each character may be written in another way."""
    ways = {
        ".": (".", ".", "%2e", "%252e", "\uff0e", "\u2024", "%c0%ae"),
        "/": ("/", "/", "%2f", "%5c", "\\", "\uff0f", "\u2215", "//", "%252f"),
    }
    return "".join(chance.choice(ways.get(char, (char,))) for char in text)


class Place:
    """A store among things that belong to somebody else: in the working folder, at home, beside and above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work, self.home, self.temporary = folder / "work", folder / "home", folder / "tmp"
        self.root = folder / "data/nanollama/models"
        for canary in (
            "secret",
            "x",
            "passwd",
            "home/.ssh/id",
            "data/secret",
            "data/nanollama/secret",
            "tmp/x",
        ):
            self._text(canary)
        for model in ("victim/m.gguf", "home/m.gguf", "work/m.gguf", "models-old/x.gguf", "data/models.gguf"):
            make_gguf(folder / model)
        for odd in ("work/%2e%2e", "work/con", "work/$HOME", "work/Modelfile"):
            self._text(odd)
        (self.work / "linked").symlink_to(folder / "victim")
        (self.work / "loop").symlink_to("loop")
        os.mknod(self.work / "socket", stat.S_IFSOCK | 0o600)
        own = make_gguf(self.store().folder(ModelName.parse(KEPT)) / "m.gguf")
        self.store().add(record_for(own, KEPT, owned=True))

    def _text(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not yours")

    def store(self, **options: object) -> Store:
        return Store(self.root, notice=lambda text: None, **options)

    def forget_all_but_kept(self) -> None:
        """Removes what names that were fine after all stand for, so that the register doesn't grow."""
        (self.root / "out.gguf").unlink(missing_ok=True)
        store = self.store()
        for record in store.list():
            if str(record.name) != KEPT:
                store.remove(record.name)

    def outside(self) -> dict[str, tuple[object, ...]]:
        """Kind, permissions, size, time and content of everything but what is in the store's folder."""
        found: dict[str, tuple[object, ...]] = {}
        for parent, folders, files in os.walk(self.folder):
            if Path(parent) == self.root:
                folders.clear()
                continue
            for name in [*folders, *files]:
                path = os.path.join(parent, name)
                status = os.lstat(path)
                inside = Path(path) == self.root  # whose time and size say what was done in it
                facts = () if inside else (status.st_size, status.st_mtime_ns)
                found[path] = (status.st_ino, status.st_mode, *facts, _content(path, status.st_mode))
        return found

    def inside(self) -> list[str]:
        """The files in the store's folder, relative to it."""
        found = (Path(parent, name) for parent, _, files in os.walk(self.root) for name in files)
        return sorted(str(path.relative_to(self.root)) for path in found)


def _content(path: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if stat.S_ISREG(mode) else ""
