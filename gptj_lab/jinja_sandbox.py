"""Jinja templates of other people: rendered as transformers does, within limits of time and size.

A chat template comes from the hub with a checkpoint, so it is as untrusted as any program. The
sandbox is transformers' (jinja2's ImmutableSandboxedEnvironment: no attributes that lead out). It
stops neither loops nor floods; here each turn of a loop, call, filter and output is counted.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

LONGEST = 1 << 22  # characters that come out, or that a value has
_SOURCE = 1 << 18  # characters of a template; the longest known have a tenth of it
_WORK = 4_000_000  # units that a rendering may spend, see _Budget
_SECONDS = 10.0  # of a rendering
_FLOOD = 1 << 26  # characters that one operation may make
_WIDE = re.compile(r"\d{5}")  # a width in a format string


class TemplateError(ValueError):
    """What is wrong with a template, or what the template itself says is wrong with messages."""


class _Budget:
    """What a rendering may still spend: a unit a step and 100 characters of source or text."""

    def __init__(self, source: str):
        self.step = 1 + len(source) // 100
        self.left, self.end = _WORK, time.monotonic() + _SECONDS

    def spend(self, characters: int = 0) -> None:
        self.left -= self.step + characters // 100
        if characters > LONGEST:
            raise TemplateError(f"it makes a text of more than {LONGEST:,} characters")
        if self.left < 0 or time.monotonic() > self.end:
            raise TemplateError("it takes too many steps, or doesn't end")


_budget: ContextVar[_Budget] = ContextVar("budget")
_tracked: ContextVar[tuple[list[int], list[tuple[int, int]]]] = ContextVar("tracked")


class Compiled:
    """A template that can be rendered.

    Attributes:
        marks: whether it marks what the assistant says, by {% generation %}.
    """

    def __init__(self, source: str):
        """Compiles it.

        Raises:
            TemplateError: it isn't a Jinja template, or is too long.
            ModuleNotFoundError: jinja2 is missing.
        """
        if len(source) > _SOURCE:
            raise TemplateError(f"it has {len(source):,} characters, more than {_SOURCE:,}")
        import jinja2
        from jinja2 import nodes

        self.source = source
        environment = _environment()
        try:
            tree = _counting(environment.parse(source))
            self._template = jinja2.Template.from_code(
                environment, environment.compile(tree), environment.make_globals(None)
            )
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {error.message}") from None
        except (RecursionError, MemoryError, SyntaxError, OverflowError) as error:
            raise TemplateError(f"it can't be compiled ({type(error).__name__})") from None
        marks = tree.find_all(nodes.ExtensionAttribute)
        self.marks = any(mark.name == "_generation_support" for mark in marks)

    def render(self, values: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """(the text, the ranges of its characters that the template marks as the assistant's).

        Raises:
            TemplateError: the template refuses the values, or leaves its limits.
        """
        import jinja2

        pieces: list[str] = []
        length, spans = [0], []
        tokens = [
            (_budget, _budget.set(_Budget(self.source))), (_tracked, _tracked.set((length, spans))),
        ]  # fmt: skip
        try:
            for piece in self._template.generate(values):
                pieces.append(piece)
                length[0] += len(piece)
                if length[0] > LONGEST:
                    raise TemplateError(f"it makes a text of more than {LONGEST:,} characters")
        except TemplateError:
            raise
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"it reaches for what a template may not have: {error}") from None
        except jinja2.TemplateError as error:
            raise TemplateError(str(error.message or error)) from None
        except (RecursionError, MemoryError) as error:
            raise TemplateError(f"it goes too deep ({type(error).__name__})") from None
        except Exception as error:  # whatever a template may stumble over
            raise TemplateError(f"{type(error).__name__}: {error!s:.200}") from None
        finally:
            for variable, token in reversed(tokens):
                variable.reset(token)
        return "".join(pieces), spans


@functools.cache
def compiled(source: str) -> Compiled:
    """The compiled template of a source, made once."""
    return Compiled(source)


@functools.cache
def _environment() -> Any:
    """transformers' environment (utils/chat_template_utils.py of 5.24), with counted operations."""
    import jinja2
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Counted(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def call(self, context: Any, called: Any, /, *given: Any, **named: Any) -> Any:
            _check_flood(called, given, named)
            return _checked(super().call(context, called, *given, **named))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right)
            return _checked(super().call_binop(context, operator, left, right))

    class Generation(ext.Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_generation_support")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _generation_support(self, caller: Callable[[], str]) -> str:
            text = caller()
            length, spans = _tracked.get()
            spans.append((length[0], length[0] + len(text)))
            return text

    environment = Counted(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    for name, plain in list(environment.filters.items()):
        environment.filters[name] = _counted_filter(plain)
    environment.filters |= {"_turns": _turns, "_checked": _checked}
    environment.globals.pop("lipsum")
    environment.globals |= {
        "raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(), "namespace": _namespace(jinja2.utils.Namespace),
    }  # fmt: skip
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Dict:
    """`dict` without the attributes of a type."""

    def __call__(self, *given: Any, **named: Any) -> dict[Any, Any]:
        return dict(*given, **named)

    def fromkeys(self, *given: Any) -> dict[Any, Any]:
        return dict.fromkeys(*given)


def _namespace(plain: type) -> type:
    class Namespace(plain):
        """Jinja's, without names that begin with an underscore, as transformers has it."""

        def __init__(*given: Any, **named: Any) -> None:
            self, values = given[0], dict(*given[1:], **named)
            for name in values:
                _check_name(name)
            plain.__init__(self, values)  # pyright: ignore[reportCallIssue]  (Jinja's own)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    return Namespace


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise TemplateError(f"it stores an attribute named {name!r}")


def _counting(tree: Any) -> Any:
    """The tree with each loop, output and joined text counted."""
    from jinja2 import nodes

    def through(node: Any, name: str) -> Any:
        return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)

    for loop in list(tree.find_all(nodes.For)):
        loop.iter = through(loop.iter, "_turns")
    for output in list(tree.find_all(nodes.Output)):
        output.nodes = [
            each if isinstance(each, nodes.TemplateData) else through(each, "_checked")
            for each in output.nodes
        ]
    for place in (nodes.Assign, nodes.If, nodes.Call, nodes.Concat):
        for node in list(tree.find_all(place)):
            for field, value in list(node.iter_fields()):
                if isinstance(value, nodes.Concat):
                    setattr(node, field, through(value, "_checked"))
                elif isinstance(value, list) and field != "body":
                    setattr(node, field, [
                        through(each, "_checked") if isinstance(each, nodes.Concat) else each
                        for each in value
                    ])  # fmt: skip
    return tree


def _turns(values: Iterable[Any]) -> Iterator[Any]:
    budget = _budget.get()
    for value in values:
        budget.spend()
        yield value


def _checked(value: Any) -> Any:
    """The value, if it isn't too large."""
    size = len(value) if isinstance(value, str | list | tuple | dict) else 0
    if isinstance(value, int) and value.bit_length() > 4096:
        raise TemplateError("it makes a number of more than 4096 bits")
    _budget.get().spend(size)
    return value


def _counted_filter(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)  # with what says that it takes the environment
    def counted(*given: Any, **named: Any) -> Any:
        _check_flood(plain, given, named)
        return _checked(plain(*given, **named))

    return counted


def _check_flood(called: Any, given: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuses what would make far more than it is given: 'x'.center(10**9), replace('', long)."""
    bound = getattr(called, "__wrapped__", called)  # jinja wraps str.format
    values = [getattr(bound, "__self__", None), *given, *named.values()]
    texts = [value for value in values if isinstance(value, str)]
    sizes = sorted((len(v) for v in values if isinstance(v, str | list | tuple)), reverse=True)
    numbers: list[int] = [abs(value) for value in values if isinstance(value, int)]
    joined = sizes[1:2] if getattr(called, "__name__", "") in _JOINING else []
    times: int = max([*numbers, *joined], default=1)
    if sum(sizes) * times > _FLOOD or (
        "format" in getattr(called, "__name__", "") and any(map(_WIDE.search, texts))
    ):
        raise TemplateError("it makes a text that is too long")


_JOINING = ("replace", "do_replace", "join", "do_join", "sync_do_join")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    sizes = [len(v) if isinstance(v, str | list | tuple) else None for v in (left, right)]
    if operator == "%" and isinstance(left, str) and _WIDE.search(left):
        raise TemplateError("it makes a text that is too long")
    if operator == "*" and (sizes[0] is None) != (sizes[1] is None):
        size, times = (sizes[0], right) if sizes[1] is None else (sizes[1], left)
        if isinstance(times, int) and (size or 0) * times > LONGEST:
            raise TemplateError(f"it makes a text of more than {LONGEST:,} characters")
    if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
        raise TemplateError("it raises a number to a power above 64")
