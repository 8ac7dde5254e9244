"""Other people's templates: what they may do is what transformers lets them, and they end."""

import pytest

from gptj_lab import jinja_sandbox
from gptj_lab.jinja_sandbox import Compiled, TemplateError

HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for a in range(9999) %}{% for b in range(999) %}{% endfor %}{% endfor %}", "too many"),
        ("{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}", "too (many|deep)"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(64) }}",
         "too many"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deep"),
        ("{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}"
         "{% endfor %}", "4,194,304 characters|too many"),
        ("{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}"
         "{% endfor %}", "4,194,304 characters|too many"),
        ("{{ 'x' * 10**9 }}", "4,194,304 characters"),
        ("{{ 'x'.center(10**9) }}", "too long"),
        ("{{ 'x' | indent(1000000000) }}", "too long"),
        ("{{ '%999999999d' % 1 }}", "too long"),
        ("{{ '{:>999999999}'.format(1) }}", "too long"),
        ("{{ ('x' * 60000).replace('', 'x' * 60000) }}", "too long"),
        ("{{ 2 ** 99999999 }}", "power above 64"),
        ("{{ ''.__class__.__mro__ }}", "reaches for what a template may not have"),
        ("{{ cycler.__init__.__globals__ }}", "reaches for what a template may not have"),
        ("{{ messages.append(1) }}", "reaches for what a template may not have"),
        ("{{ namespace(__class__=1) }}", "attribute named '__class__'"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages[0].a.b.c }}", "no attribute 'a'"),
        ("{{ raise_exception('Roles must alternate!') }}", "^Roles must alternate!$"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_template_that_leaves_its_limits_is_refused(source, why, monkeypatch):
    monkeypatch.setattr(jinja_sandbox, "_WORK", 20_000)
    with pytest.raises(TemplateError, match=why):
        Compiled(source).render(HI)


def test_what_cannot_be_compiled_is_refused_with_its_line():
    with pytest.raises(TemplateError, match="line 2: Encountered unknown tag 'nope'"):
        Compiled("\n{% nope %}")
    with pytest.raises(TemplateError, match="characters, more than 262,144"):
        Compiled("x" * 300_000)


def test_loops_know_their_length_and_marks_their_places():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }}:"
        "{% generation %}{{ m.content | upper }}{% endgeneration %}{{ '\\n' }}"
        "{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}"
    )
    made = Compiled(source)
    assert made.marks and not Compiled("{{ '{% generation %}' }}").marks
    text, spans = made.render({"messages": [{"content": c} for c in "abc"]})
    assert text == "1/3:A\n2/3:B\n" and [text[a:b] for a, b in spans] == ["A", "B"]
