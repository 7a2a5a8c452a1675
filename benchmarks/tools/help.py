"""What `--help` says of options: the texts below them, without the source's line breaks."""

import ast
import inspect
from typing import Annotated, TypeVar, get_type_hints

import tyro

T = TypeVar("T")


def help_texts(kind: type) -> dict[str, str]:
    """The text below each option, in its class or in one that it extends."""
    texts = {}
    for each in reversed(kind.__mro__[:-1]):
        (node,) = ast.parse(inspect.getsource(each)).body
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                texts[ast.unparse(field.target)] = " ".join(text.split())
    return texts


def with_help(kind: type[T]) -> type[T]:
    """The class, its options annotated with their texts."""
    hints = get_type_hints(kind, include_extras=True)
    for name, text in help_texts(kind).items():
        kind.__annotations__[name] = Annotated[hints[name], tyro.conf.arg(help=text)]
    return kind
