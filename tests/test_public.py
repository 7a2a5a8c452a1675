"""Every public name: sorted, and told about in full."""

import inspect
import re

import pytest

import sapsel_jax as sap

SECTIONS = ("Args:", "Returns:", "Raises:", "Cost:", "Source:", "Example:")
FUNCTIONS = [
    (name, getattr(sap.audit, name))
    for name in sap.audit.__all__
    if inspect.isfunction(getattr(sap.audit, name))
]


@pytest.mark.parametrize("module", [sap, sap.audit])
def test_names_are_sorted_and_exist(module):
    assert module.__all__ == sorted(module.__all__)
    assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)


@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_a_docstring_has_every_section_in_order_and_an_example_that_runs(name, function):
    text = inspect.getdoc(function) or ""
    places = [text.find(f"\n{section}") for section in SECTIONS]
    assert -1 not in places, SECTIONS[places.index(-1)]
    assert places == sorted(places)
    assert f"sap.audit.{name}(" in text[places[-1] :]
    arguments = text[places[0] : places[1]]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\n  {parameter}: ", arguments), parameter


@pytest.mark.parametrize(
    "name", [n for n in sap.audit.__all__ if inspect.isclass(getattr(sap.audit, n))]
)
def test_every_field_of_a_result_is_explained(name):
    kind = getattr(sap.audit, name)
    for field in kind._fields:
        assert re.search(rf"\n  {field}: ", inspect.getdoc(kind) or ""), field
