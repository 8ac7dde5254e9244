"""An interpreter for the pickles inside torch's weight files, which can make data and nothing else.

Python's own unpickler looks names up and calls what it finds. This one knows a dozen names, all of
them functions of ours that return inert values; it has no way to reach anything else.
"""

import pickletools
from collections.abc import Callable
from typing import Any

MAX_BYTES = 64_000_000  # a state dict of a million tensors has less
_CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False,
}  # fmt: skip
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(ValueError):
    """The pickle asks for something that a state dict doesn't need."""


class Interpreter:
    """Runs one pickle.

    Attributes:
        names: what each "module name" that may occur stands for; a function there is called with
            the pickle's arguments, anything else can only be passed on.
        persistent: turns a persistent id (torch's reference to a storage) into a value.
    """

    def __init__(self, names: dict[str, Any], persistent: Callable[[Any], Any]):
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The value that the pickle describes.

        Raises:
            Refused: it names something that is not in `names`, or uses an operation that isn't
                needed for a state dict.
            ValueError: it is damaged.
        """
        if len(data) > MAX_BYTES:
            raise Refused(f"it is {len(data):,} bytes long, a state dict's is far below")
        try:
            for operation, argument, _ in pickletools.genops(data):
                if operation.name == "STOP":
                    (value,) = self.stack
                    return value
                self._step(operation.name, argument)
        except Refused:
            raise
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        raise ValueError("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self._tuple(_TUPLES[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            self._gather(name)
        elif name in ("APPEND", "SETITEM"):
            self._gather_one(name)
        else:
            self._call(name, argument)

    def _tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError("a tuple wants more values than there are")
        split = len(self.stack) - length
        self.stack[split:] = [tuple(self.stack[split:])]

    def _gather(self, name: str) -> None:
        """What to do with all values since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        if name == "TUPLE":
            self.stack.append(tuple(values))
        elif name == "APPENDS":
            _a(list, self.stack[-1]).extend(values)
        else:
            self._set_items(values)

    def _gather_one(self, name: str) -> None:
        if name == "APPEND":
            value = self.stack.pop()
            _a(list, self.stack[-1]).append(value)
        else:
            value, key = self.stack.pop(), self.stack.pop()
            self._set_items([key, value])

    def _set_items(self, values: list[Any]) -> None:
        target = _a(dict, self.stack[-1])
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing a nested tuple could take for ever
                raise TypeError(f"a key is a {type(key).__name__}")
            target[key] = value

    def _call(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(self._named(argument))
        elif name == "STACK_GLOBAL":
            what, module = stack.pop(), stack.pop()
            stack.append(self._named(f"{module} {what}"))
        elif name == "REDUCE":
            arguments, function = _a(tuple, stack.pop()), stack.pop()
            if not callable(function):
                raise Refused(f"it calls a {type(function).__name__}")
            stack.append(function(*arguments))
        elif name == "BUILD":
            stack.pop()  # attributes such as a state dict's _metadata: not needed
            _a(dict, stack[-1])
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        else:
            raise Refused(f"it uses the operation {name}, which a state dict doesn't need")

    def _named(self, name: str) -> Any:
        if name not in self.names:
            raise Refused(
                f"it asks for {'.'.join(name.split(' '))}, which a state dict never needs"
            )
        return self.names[name]


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} is needed")
    return value
