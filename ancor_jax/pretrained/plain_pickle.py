"""A pickle machine that builds plain data and calls nothing but the builders of a table.

A pickle is a program for a stack machine: it may name any function of any module and have it called, or set any
attribute of an object. This machine knows the instructions that dicts, lists, tuples, strings and numbers need. A name
outside its table is refused before anything is looked up, and its work is bounded by the length of the pickle.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

from ancor_jax.pretrained.naming import WeightsError

Name = tuple[str, str]  # module, name in it


class Builder(NamedTuple):
    """A function that a pickle may call with plain data. What it returns must be plain data as well."""

    function: Callable[..., Any]


class Fields(dict[str, Any]):
    """The attributes of an object whose class plays no part, such as `argparse.Namespace`."""


# Instructions that push their argument, and instructions that push something new.
_LITERALS = {
    *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'),
    *('UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8'),
    *('STRING', 'SHORT_BINSTRING', 'BINSTRING', 'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8'),
}
_NEW: dict[str, Callable[[], Any]] = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_TUPLE': tuple,
    'EMPTY_LIST': list,
    'EMPTY_DICT': dict,
}
_MOST_INSTRUCTIONS = 10_000_000  # a network of a thousand tensors needs some thirty thousand
_NO_EFFECT = {'PROTO', 'FRAME'}
_KEYS = (str, int, float, bool, type(None))  # a deep tuple as a key would be hashed by recursion without a limit


def load(
    stream: BinaryIO, table: Mapping[Name, Any], persistent: Callable[[Any], Any], most_items: int, where: str
) -> Any:
    """The object of the pickle that the stream stands at; the stream is left after it.

    Args:
        stream: binary; `read(n)` must not reserve memory for more than there is.
        table: (module, name) → a constant that stands for it, or the `Builder` that is called in its place.
        persistent: what a persistent id stands for.
        most_items: bounds the lengths of all arguments of builders together; the length of the file is enough.
        where: names the file in messages.

    Raises:
        WeightsError: the pickle names something outside the table.
        others: it is damaged.
    """
    return _Machine(table, persistent, most_items, where).run(stream)


class _Mark:
    """Where an instruction's items begin on the stack."""


class _Machine:
    def __init__(
        self, table: Mapping[Name, Any], persistent: Callable[[Any], Any], most_items: int, where: str
    ) -> None:
        self._table, self._persistent, self._items_left, self._where = table, persistent, most_items, where
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            name = opcode.name
            if count > _MOST_INSTRUCTIONS:
                raise ValueError('a pickle of too many instructions')
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _NEW:
                self._stack.append(_NEW[name]())
            elif name == 'STOP':
                break
            elif name not in _NO_EFFECT:
                handler = _HANDLERS.get(name)
                if handler is None:
                    raise ValueError(f'the instruction {name} of a pickle has no place in weights')
                handler(self, argument)
        return self._pop()

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _Mark:
            raise ValueError('a mark where a value belongs')
        return value

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f'no {kind.__name__} where one belongs')
        return self._stack[-1]

    def _items(self) -> list[Any]:
        """Pops what lies above the last mark, and the mark."""
        items = []
        while (value := self._stack.pop()) is not _Mark:
            items.append(value)
        return items[::-1]

    def _spend(self, *values: Any) -> None:
        """Counts what a builder gets: a pickle may repeat a long argument by a short reference."""
        self._items_left -= sum(1 + len(value) for value in values if hasattr(value, '__len__'))
        if self._items_left < 0:
            raise ValueError('it repeats its content too often')

    # --- instructions ---

    def _mark(self, _: Any) -> None:
        self._stack.append(_Mark)

    def _pop_one(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._items()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._items()))

    def _short_tuple(self, length: int) -> None:
        values = [self._pop() for _ in range(length)]
        self._stack.append(tuple(values[::-1]))

    def _list(self, _: Any) -> None:
        self._stack.append(self._items())

    def _dict(self, _: Any) -> None:
        items = self._items()
        self._stack.append({})
        self._set(items)

    def _append(self, _: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        items = self._items()
        self._top(list).extend(items)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _set_items(self, _: Any) -> None:
        self._set(self._items())

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise ValueError(f'a {type(key).__name__} as a key')
            target[key] = value

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, number: int) -> None:
        self._stack.append(self._memo[number])

    def _global(self, names: str) -> None:
        self._push_global(*names.split(' ', 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._push_global(str(module), str(name))

    def _push_global(self, module: str, name: str) -> None:
        module = {'__builtin__': 'builtins'}.get(module, module)  # Python 2's
        if (module, name) not in self._table:
            raise WeightsError(
                f'{self._where} wants to build {module}.{name}, and only tensors and plain containers are read, since '
                'a pickle can run any program; save the state_dict alone, or convert the file to safetensors.'
            )
        self._stack.append(self._table[module, name])

    def _call(self, _: Any) -> None:
        arguments, builder = self._pop(), self._pop()
        if not isinstance(builder, Builder) or not isinstance(arguments, tuple):
            raise ValueError('a call of what is no function')
        self._spend(arguments, *arguments)
        self._stack.append(builder.function(*arguments))

    def _build(self, _: Any) -> None:
        """Attributes of an object: kept for `Fields`; those of a state_dict or a dtype are no part of the weights."""
        state = self._pop()
        self._spend(state)
        if isinstance(self._stack[-1], Fields) and isinstance(state, dict):
            self._stack[-1].update(state)

    def _persistent_id(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    'MARK': _Machine._mark,
    'POP': _Machine._pop_one,
    'POP_MARK': _Machine._pop_mark,
    'DUP': _Machine._duplicate,
    'TUPLE': _Machine._tuple,
    'TUPLE1': lambda machine, _: machine._short_tuple(1),
    'TUPLE2': lambda machine, _: machine._short_tuple(2),
    'TUPLE3': lambda machine, _: machine._short_tuple(3),
    'LIST': _Machine._list,
    'DICT': _Machine._dict,
    'APPEND': _Machine._append,
    'APPENDS': _Machine._appends,
    'SETITEM': _Machine._set_item,
    'SETITEMS': _Machine._set_items,
    'PUT': _Machine._put,
    'BINPUT': _Machine._put,
    'LONG_BINPUT': _Machine._put,
    'MEMOIZE': _Machine._memoize,
    'GET': _Machine._get,
    'BINGET': _Machine._get,
    'LONG_BINGET': _Machine._get,
    'GLOBAL': _Machine._global,
    'STACK_GLOBAL': _Machine._stack_global,
    'REDUCE': _Machine._call,
    'NEWOBJ': _Machine._call,
    'BUILD': _Machine._build,
    'BINPERSID': _Machine._persistent_id,
}
