"""Templates that attack: by reaching the interpreter, or by using up its time or memory."""
# ruff: noqa: E501  # one attack a line

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanollama.errors import TemplateError
from nanollama.text.budget import run_within
from nanollama.text.template import ChatTemplate
from nanollama.types import Message

# An interruption may arrive inside the callback that hypothesis hangs into the garbage collector, where Python
# reports and drops it. It is then repeated, which is what run_within is built for.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*gc_callback:pytest.PytestUnraisableExceptionWarning"
)

MESSAGES = [Message("user", "hi")]
REFUSED = "refused"

ESCAPES = [
    # Attributes of built-in values, in every spelling.
    ("{{ ''.__class__ }}", ""),
    ("{{ ''.__class__.__mro__ }}", REFUSED),
    ("{{ ''['__class__']['__mro__'] }}", REFUSED),
    ("{{ ''|attr('__class__')|attr('__mro__') }}", ""),
    ("{{ ''|attr('__cla' ~ 'ss__') }}", ""),
    ("{{ ''.__class__.__base__.__subclasses__() }}", REFUSED),
    ("{{ [].__class__.__base__.__subclasses__()[40]('/etc/passwd').read() }}", REFUSED),
    ("{{ ().__class__.__bases__[0] }}", REFUSED),
    ("{{ {}.__class__.__init__.__globals__ }}", REFUSED),
    ("{{ 1 .__class__.__mro__ }}", REFUSED),
    ("{{ messages.__class__.__init__ }}", ""),
    ("{{ messages[0].__class__.fromkeys('ab') }}", REFUSED),
    ("{{ ''.__reduce_ex__(2) }}", REFUSED),
    ("{{ ''.__doc__ }}", ""),
    ("{{ ''.__getattribute__('x') }}", REFUSED),
    ("{{ [''] | map(attribute='__class__') | list }}", "[Undefined]"),
    ("{{ [''] | map(attribute='__class__.__mro__') | list }}", REFUSED),
    ("{{ [''] | map('attr', '__class__') | map('attr', '__mro__') | list }}", "[Undefined]"),
    ("{{ [''] | selectattr('__class__') | list }}", "[]"),
    ("{{ [''] | sum(attribute='__class__') }}", REFUSED),
    ("{{ [''] | join(attribute='__class__') }}", ""),
    ("{{ [''] | groupby('__class__.__name__') | list }}", REFUSED),
    ("{{ [''] | sort(attribute='__class__.__mro__') }}", REFUSED),
    # Functions and classes that the language itself brings.
    ("{{ range.__globals__ }}", ""),
    ("{{ raise_exception.__globals__['os'] }}", REFUSED),
    ("{{ strftime_now.__globals__.sys }}", REFUSED),
    ("{{ strftime_now.__code__.co_consts }}", REFUSED),
    ("{{ strftime_now.__closure__[0].cell_contents }}", REFUSED),
    ("{{ namespace.__init__.__globals__ }}", REFUSED),
    ("{{ namespace.mro() }}", REFUSED),
    ("{{ dict.mro() }}", REFUSED),
    ("{{ dict.fromkeys('ab') }}", REFUSED),
    ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", REFUSED),
    ("{{ joiner.__init__.__globals__.os.popen('id').read() }}", REFUSED),
    ("{{ cycler('a').__init__.__globals__ }}", REFUSED),
    ("{{ namespace(a=1)._Namespace__attrs }}", ""),
    ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__.__mro__ }}", REFUSED),
    ("{{ lipsum.__globals__.os.popen('id').read() }}", REFUSED),
    ("{{ lipsum() }}", REFUSED),
    ("{{ url_for.__globals__ }}", REFUSED),
    ("{{ get_flashed_messages.__globals__ }}", REFUSED),
    ("{{ request.application.__globals__ }}", REFUSED),
    ("{{ config.items() }}", REFUSED),
    ("{{ self.__init__.__globals__ }}", REFUSED),
    ("{{ self._TemplateReference__context.cycler.__init__.__globals__.os }}", REFUSED),
    ("{{ self.__dict__ }}", ""),
    ("{{ context.environment }}", REFUSED),
    ("{{ environment.from_string('x') }}", REFUSED),
    ("{{ __import__('os') }}", REFUSED),
    ("{{ eval('1') }}", REFUSED),
    ("{{ open('/etc/passwd').read() }}", REFUSED),
    ("{{ missing.__class__.__mro__ }}", REFUSED),
    ("{{ missing._undefined_exception }}", ""),
    ("{{ missing._fail_with_undefined_error() }}", REFUSED),
    ("{% for x in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}", REFUSED),
    ("{% for x in [1] %}{{ loop._iterable }}{% endfor %}", ""),
    ("{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}", REFUSED),
    ("{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}", ""),
    ("{{ (messages | map('upper')).gi_frame.f_globals }}", REFUSED),
    ("{{ (messages | map('upper')).gi_code.co_names }}", REFUSED),
    ("{{ (messages | map('upper')).throw(1) }}", REFUSED),
    # str.format, whose fields are a language of their own.
    ("{{ '{0.__class__}'.format('') }}", ""),
    ("{{ '{0.__class__.__mro__}'.format('') }}", REFUSED),
    ("{{ '{0[__class__]}'.format({}) }}", ""),
    ("{{ '{x.__class__.__init__.__globals__}'.format_map({'x': ''}) }}", REFUSED),
    ("{{ ''.format.__self__ }}", ""),
    ("{{ ('{0.__class__.__mro__}' | attr('format'))('') }}", REFUSED),
    ("{{ ('{0.__class__.__mro__}' | attr('format_map'))({'0': ''}) }}", REFUSED),
    ("{{ '{0.__class__.__mro__}'['format']('') }}", REFUSED),
    ("{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}", REFUSED),
    ("{{ ['{0.__class__.__mro__}'] | map('format', '') | list }}", REFUSED),
    ("{{ ('{0.__class__.__mro__}' | safe).format('') }}", REFUSED),
    ("{{ '%(__class__)s' % {} }}", REFUSED),
    # Changing what is shared.
    ("{{ messages.append(1) }}", REFUSED),
    ("{{ messages[0].update({'content': 'x'}) }}", REFUSED),
    ("{{ messages[0].pop('content') }}", REFUSED),
    ("{{ messages.clear() }}", REFUSED),
    ("{% set _ = messages[0].setdefault('x', 1) %}", REFUSED),
    ("{{ messages | attr('append') }}", ""),
    ("{% set messages[0].content = 'x' %}", REFUSED),
    ("{% do messages.append(1) %}", REFUSED),
    # Other files, other languages.
    ("{% include '/etc/passwd' %}", REFUSED),
    ("{% import 'os' as os %}{{ os }}", REFUSED),
    ("{% from 'os' import popen %}", REFUSED),
    ("{% extends '/etc/passwd' %}", REFUSED),
    ("{% debug %}", REFUSED),
    ("{{ 'x'.encode('zip') }}", REFUSED),
    ("{{ 'id' | popen }}", REFUSED),
    ("{{ messages | pprint }}", REFUSED),
    ("{{ 'x' | random }}", REFUSED),
    ("{{ '' is weighed }}", REFUSED),
    ("{{ '' | counted when made }}", REFUSED),
]


@pytest.mark.parametrize(("source", "expected"), ESCAPES, ids=[source for source, _ in ESCAPES])
def test_a_template_can_not_reach_the_interpreter(source: str, expected: str) -> None:
    try:
        text = ChatTemplate(source).render(MESSAGES).text
    except TemplateError:
        text = REFUSED
    assert text == expected


def test_the_table_of_escapes_has_at_least_sixty_entries() -> None:
    assert len({source for source, _ in ESCAPES}) >= 60


DAG = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
KEEP = "{% set ns = namespace(x=[]) %}{% set s = 'é€' * 100000 %}{% for i in range(99999) %}{% set ns.x = [ns.x, WHAT] %}{% endfor %}"

HOSTILE = {
    # Time.
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    "exponential macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "exponential loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
    "substring search": "{% set s = 'a' * 200000 %}{% for i in range(99999) %}{% for j in range(99999) %}{{ s.count('ab') or '' }}{% endfor %}{% endfor %}",
    # Depth.
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "endless block": "{% block a %}{{ self.a() }}{% endblock %}",
    "endless loop call": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "brackets": "{{ " + "[" * 5000 + "1" + "]" * 5000 + " }}",
    "ifs": "{% if 1 %}" * 2500 + "{% endif %}" * 2500,
    "fors": "{% for x in y %}" * 50 + "{% endfor %}" * 50,
    "nots": "{{ " + "not " * 5000 + "1 }}",
    "minuses": "{{ " + "-" * 5000 + "1 }}",
    "sums": "{{ 1" + "+1" * 5000 + " }}",
    "filters": "{{ a" + "|upper" * 5000 + " }}",
    "nested value": "{% set ns = namespace(x=(1,)) %}{% for i in range(9999) %}{% set ns.x = (ns.x,) %}{% endfor %}{{ {ns.x: 1} }}",
    # One operation that makes much.
    "product": "{{ 'a' * 300000000 }}",
    "product reversed": "{{ 300000000 * 'a' }}",
    "list product": "{% set x = [1] * 300000000 %}",
    "product of variables": "{% set x = 'a' * 100000 %}{% set y = x * 100000 %}",
    "product of safe text": "{{ ('a' | safe) * 300000000 }}",
    "power": "{{ 2 ** (2 ** (2 ** (2 ** (2 ** 2)))) }}",
    "large power": "{{ 10 ** 100000000 }}",
    "squares": "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "center": "{{ 'a' | center(200000000) }}",
    "center method": "{{ 'a'.center(200000000) }}",
    "center in steps": "{{ 'a'.center(1000000) | center(1000000) }}",
    "ljust": "{{ 'a'.ljust(200000000) }}",
    "rjust": "{{ 'a'.rjust(200000000) }}",
    "zfill": "{{ 'a'.zfill(200000000) }}",
    "expandtabs": "{{ ('\\t' * 1000).expandtabs(200000) }}",
    "center by map": "{{ ['a'] | map('center', 200000000) | list }}",
    "center by filter block": "{% filter center(200000000) %}x{% endfilter %}",
    "printf star": "{{ '%*d' | format(200000000, 1) }}",
    "printf star operator": "{{ '%*d' % (200000000, 1) }}",
    "printf width": "{{ '%200000000d' % 1 }}",
    "printf precision": "{{ '%.200000000f' % 1.0 }}",
    "printf repeated": "{{ ('%(a)s' * 10000) % {'a': 'x' * 10000} }}",
    "printf of safe text": "{{ ('%200000000d' | safe) % 1 }}",
    "format width": "{{ '{:200000000}'.format(1) }}",
    "format nested width": "{{ '{:{}}'.format(1, 200000000) }}",
    "format repeated": "{{ ('{0}' * 10000).format('x' * 10000) }}",
    "format_map": "{{ '{a:200000000}'.format_map({'a': 1}) }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "batch": "{{ [1] | batch(300000000, 'x') | list }}",
    "slice": "{{ [1] | slice(300000000) | list }}",
    "round": "{{ 5 | round(-100000000, 'floor') }}",
    "indent": "{{ ('a\\n' * 1000) | indent(100000) }}",
    "indent by text": "{{ ('a\\n' * 1000) | indent('x' * 100000) }}",
    "replace": "{{ ('a' * 10000) | replace('a', 'b' * 10000) }}",
    "replace method": "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "replace nothing": "{{ ('a' * 10000) | replace('', 'b' * 10000) }}",
    "translate": "{{ ('a' * 10000).translate({97: 'b' * 10000}) }}",
    "join": "{{ (['a' * 10000] * 10000) | join }}",
    "join method": "{{ ''.join(['a' * 10000] * 10000) }}",
    "join attribute": "{{ ([{'a': 'a' * 10000}] * 10000) | join(attribute='a') }}",
    "join separator": "{{ range(9999) | join('x' * 10000) }}",
    "sum of lists": "{{ ([[1]] * 20000) | sum(start=[]) | length }}",
    "to_bytes": "{{ (1).to_bytes(200000000, 'big') }}",
    "range": "{{ range(1000000000) | list }}",
    "JSON indent": "{{ [[1]] | tojson(indent=200000000) }}",
    "JSON nested indent": "{% set ns = namespace(x=[1] * 1000) %}{% for i in range(90) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson(indent=10000) }}",
    "date": "{{ strftime_now('%c' * 10000) }}",
    "spread": "{{ dict(*('é' * 200000)) }}",
    "spread to filter": "{{ 'a' | replace(*('é' * 200000)) }}",
    # Many operations that make much together.
    "output": "{% for i in range(99999) %}{{ 'abcdefgh' * 100 }}{% endfor %}",
    "output in a block": "{% set x %}{% for i in range(99999) %}{{ 'abcdefgh' * 100 }}{% endfor %}{% endset %}",
    "doubling": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling sum": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling escapes": "{% set ns = namespace(x='&') %}{% for i in range(99999) %}{% set ns.x = ns.x | forceescape %}{% endfor %}",
    "keep slices": KEEP.replace("WHAT", "s[1:]"),
    "keep copies": KEEP.replace("WHAT", "s.upper()"),
    "keep concatenations": KEEP.replace("WHAT", "s ~ i"),
    "keep letters": KEEP.replace("WHAT", "s | list"),
    "keep sorted letters": KEEP.replace("WHAT", "s | sort"),
    "keep words": KEEP.replace("WHAT", "s.split('é')"),
    "keep ranges": KEEP.replace("WHAT", "range(99999) | list"),
    # Small in memory, endless when printed, compared or hashed.
    "print": DAG + "{{ ns.x }}",
    "print namespace": DAG + "{{ ns }}",
    "print view": DAG + "{{ {'a': ns.x}.values() }}",
    "concatenate": DAG + "{{ ns.x ~ '' }}",
    "to string": DAG + "{{ ns.x | string }}",
    "trim": DAG + "{{ ns.x | trim }}",
    "map to string": DAG + "{{ [ns.x] | map('string') | list | length }}",
    "join nested": DAG + "{{ [ns.x] | join }}",
    "JSON": DAG + "{{ ns.x | tojson }}",
    "printf value": DAG + "{{ '%s' % (ns.x,) }}",
    "format value": DAG + "{{ '{!r}'.format(ns.x) }}",
    "format attribute": DAG + "{{ '{0.x}'.format(ns) }}",
    "raise": DAG + "{{ raise_exception(ns.x) }}",
    "equal": DAG + "{{ ns.x == ns.y }}",
    "less": DAG + "{{ ns.x < ns.y }}",
    "in": DAG + "{{ ns.x in [ns.y] }}",
    "is eq": DAG + "{{ ns.x is eq ns.y }}",
    "select": DAG + "{{ [ns.x] | select('==', ns.y) | list | length }}",
    "selectattr": DAG + "{{ [{'a': ns.x}] | selectattr('a', '==', ns.y) | list | length }}",
    "sort": DAG + "{{ [ns.x, ns.y] | sort | length }}",
    "max": DAG + "{{ [ns.x, ns.y] | max | length }}",
    "unique": DAG + "{{ [ns.x, ns.y] | unique | list | length }}",
    "index": DAG + "{{ [ns.x].index(ns.y) }}",
    "loop.changed": DAG + "{% for i in [1, 2] %}{{ loop.changed(ns.x if loop.first else ns.y) }}{% endfor %}",
    "hash key": DAG.replace("[ns.x, ns.x]", "(ns.x, ns.x)") + "{{ {ns.x: 1} | length }}",
    "hash index": DAG.replace("[ns.x, ns.x]", "(ns.x, ns.x)") + "{{ {}[ns.x] }}",
    "hash get": DAG.replace("[ns.x, ns.x]", "(ns.x, ns.x)") + "{{ {}.get(ns.x) }}",
}  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, time_limit_s=0.3, max_chars=1 << 18).render(MESSAGES)
    assert len(str(caught.value)) < 1500


def test_hostile_templates_together_stay_under_the_memory_limit(tmp_path: Path) -> None:
    """With the default budgets, in one fresh process whose peak is read from the system."""
    pytest.importorskip("resource", reason="peak memory is read from the system with the module resource")
    heavy = [
        HOSTILE[name]
        for name in HOSTILE
        if name.startswith(("keep", "output", "doubling", "product", "print"))
    ]
    script = """
import json, resource, sys, threading
from nanollama.errors import TemplateError
from nanollama.text.template import ChatTemplate
from nanollama.types import Message
ChatTemplate("x").render([])
before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
for source in json.load(sys.stdin):
    try:
        ChatTemplate(source).render([Message("user", "hi")])
    except TemplateError:
        refused += 1
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"refused": refused, "mib": (after - before) * unit / 2**20, "threads": threading.active_count()}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(heavy),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    report = json.loads(done.stdout)
    assert report["refused"] == len(heavy)
    assert report["mib"] < 256
    assert report["threads"] == 1


def test_a_benign_template_renders_while_hostile_ones_are_stopped() -> None:
    hostile = [ChatTemplate(HOSTILE["loops"], time_limit_s=0.5) for _ in range(4)]
    benign = ChatTemplate("{{ messages[0].content }}", time_limit_s=30)
    errors: list[TemplateError] = []

    def attack(template: ChatTemplate) -> None:
        try:
            template.render(MESSAGES)
        except TemplateError as error:
            errors.append(error)

    threads = [threading.Thread(target=attack, args=(template,)) for template in hostile]
    for thread in threads:
        thread.start()
    assert [benign.render(MESSAGES).text for _ in range(5)] == ["hi"] * 5
    for thread in threads:
        thread.join()
    assert len(errors) == len(hostile)


def test_a_template_works_again_after_it_was_stopped() -> None:
    template = ChatTemplate(
        "{% for i in range(messages[0].content | int) %}{% for j in range(99999) %}{% endfor %}{% endfor %}ok",
        time_limit_s=0.2,
    )
    for _ in range(2):
        with pytest.raises(TemplateError, match=r"0\.2 s, its time limit"):
            template.render([Message("user", "99999")])
        assert template.render([Message("user", "1")]).text == "ok"


BENIGN_LARGE = {
    "4,096 messages of 500 characters": ("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim }}{% endfor %}", 4096, 500),
    "one message of a million characters": ("{% for m in messages %}{{ m['role'] + ': ' + m['content'].strip() }}{% endfor %}", 1, 10**6),
    "a growing namespace": ("{% set ns = namespace(all='') %}{% for m in messages %}{% set ns.all = ns.all + m.content %}{% endfor %}{{ ns.all }}", 200, 1000),
    "lists of messages": ("{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}{% endfor %}{{ ns.l | map(attribute='content') | join }}", 1000, 100),
}  # fmt: skip


@pytest.mark.parametrize(("source", "count", "size"), BENIGN_LARGE.values(), ids=BENIGN_LARGE)
def test_large_benign_conversations_stay_within_the_budget(source: str, count: int, size: int) -> None:
    messages = [Message("user", "x" * size)] * count
    assert ChatTemplate(source, time_limit_s=30).render(messages).text.count("x") == count * size


def test_large_benign_tools_stay_within_the_budget() -> None:
    properties = {f"field{i}": {"type": "string", "description": "d" * 100} for i in range(20)}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": properties}} for i in range(512)
    ]
    template = ChatTemplate(
        "{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}", time_limit_s=30
    )
    assert template.render(MESSAGES, tools=tools).text.count("field19") == 512


def test_the_output_limit_is_exact() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", max_chars=100)
    assert len(template.render([Message("user", "x" * 50)] * 2).text) == 100
    with pytest.raises(TemplateError, match="length 101; the limit is 100"):
        template.render([Message("user", "x" * 50), Message("user", "x" * 51)])


def test_a_long_template_with_many_expressions_compiles() -> None:
    assert ChatTemplate("{{ a }}{{ b }}" * 4600, time_limit_s=30).render(MESSAGES).text == ""


def test_an_error_of_the_job_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="x"):
        run_within(30, lambda: {}["x"])


def test_only_the_immutable_sandbox_of_jinja_is_used() -> None:
    sources = Path(sys.modules["nanollama"].__path__[0]).rglob("*.py")
    unsafe = re.compile(
        r"jinja2\.(Environment|Template)\b|from jinja2 import [^\n]*\b(Environment|Template)\b|(?<!Immutable)SandboxedEnvironment"
    )
    assert not [path.name for path in sources if unsafe.search(path.read_text("utf-8"))]


def test_jinja_is_imported_with_the_first_template_only() -> None:
    script = "import sys, nanollama.text.template, nanollama.text.chat; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
