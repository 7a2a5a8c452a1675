"""Every public name: sorted, and told about in full."""

import builtins
import doctest
import enum
import inspect
import re

import pytest

import sapsel_jax as sap

SECTIONS = ("Args:", "Returns:", "Raises:", "Cost:", "Source:", "Example:")
MODULES = {"sap": sap, "sap.audit": sap.audit}
PUBLIC = [
    (module, name, getattr(MODULES[module], name))
    for module in MODULES
    for name in MODULES[module].__all__
]
FUNCTIONS = [each for each in PUBLIC if inspect.isfunction(each[2])]
RESULTS = [
    each for each in PUBLIC if inspect.isclass(each[2]) and not issubclass(each[2], enum.Enum)
]


def named(cases):
    return [pytest.param(*case, id=f"{case[0]}.{case[1]}") for case in cases]


def parts_of(text):
    """A docstring's summary, its rule and its sections, each without its name."""
    starts = [text.find(f"\n{section}") for section in SECTIONS]
    missing = [section for section, start in zip(SECTIONS, starts, strict=True) if start < 0]
    assert missing == []
    assert starts == sorted(starts)
    summary, _, rule = text[: starts[0]].partition("\n\n")
    ends = [*starts[1:], len(text)]
    bodies = [
        text[start + 1 + len(section) : end].strip("\n")
        for section, start, end in zip(SECTIONS, starts, ends, strict=True)
    ]
    return summary, rule.strip(), dict(zip(SECTIONS, bodies, strict=True))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_names_are_sorted_and_exist(module):
    assert module.__all__ == sorted(module.__all__)
    assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)


def test_every_function_is_seen():
    for module, least in (("sap", 57), ("sap.audit", 20)):
        assert len([each for each in FUNCTIONS if each[0] == module]) >= least


@pytest.mark.parametrize(("module", "name", "function"), named(FUNCTIONS))
def test_a_docstring_has_every_section_in_order(module, name, function):
    summary, rule, sections = parts_of(inspect.getdoc(function))
    # One line that begins with a verb: what the function does.
    assert re.fullmatch(r"[A-Z][a-z]*s [^\n]*[.?]", summary), summary
    assert rule
    assert all(sections.values()), sections


@pytest.mark.parametrize(("module", "name", "function"), named(FUNCTIONS))
def test_every_argument_is_explained(module, name, function):
    _, _, sections = parts_of(inspect.getdoc(function))
    explained = re.findall(r"^  \*?(\w+): \S", sections["Args:"], re.MULTILINE)
    assert explained == list(inspect.signature(function).parameters)


@pytest.mark.parametrize(("module", "name", "function"), named(FUNCTIONS))
def test_the_errors_are_named(module, name, function):
    _, _, sections = parts_of(inspect.getdoc(function))
    errors = re.findall(r"^  (\w+): \S", sections["Raises:"], re.MULTILINE)
    assert errors or sections["Raises:"].startswith(" nothing")
    assert [error for error in errors if not issubclass(getattr(builtins, error), Exception)] == []


@pytest.mark.parametrize(("module", "name", "function"), named(FUNCTIONS))
def test_an_example_calls_it(module, name, function):
    _, _, sections = parts_of(inspect.getdoc(function))
    examples = doctest.DocTestParser().get_examples(sections["Example:"])
    assert any(f"{module}.{name}(" in example.source for example in examples)
    assert any(example.want for example in examples)


@pytest.mark.parametrize(("module", "name", "kind"), named(RESULTS))
def test_every_field_of_a_result_is_explained(module, name, kind):
    text = inspect.getdoc(kind) or ""
    for field in kind.__annotations__:
        assert re.search(rf"^  {field}: \S", text, re.MULTILINE), field
