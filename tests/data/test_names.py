"""Names in any bytes, as text and as cells."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ancor_jax.data import DataError, names


@pytest.mark.parametrize(
    ('raw', 'shown'),
    [
        (b'caf\xe9', 'caf\\xe9'),
        ('café ☃ 日本 🐶'.encode(), 'café ☃ 日本 🐶'),
        (b'two\nlines\x1b[31m', 'two\\nlines\\x1b[31m'),
        ('\u202egnp.exe'.encode(), '\\u202egnp.exe'),
        ('\u3000wide\u00a0space'.encode(), '\u3000wide\u00a0space'),
    ],
)
def test_names_are_shown_as_one_line_of_valid_text(raw, shown):
    assert names.shown(os.fsdecode(raw)) == shown


@given(st.binary(max_size=20))
def test_what_is_shown_can_be_written_and_is_shown_as_itself(raw):
    shown = names.shown(os.fsdecode(raw))
    shown.encode('utf-8')
    assert len(shown.splitlines()) <= 1
    assert names.shown(shown) == shown


@given(st.text(alphabet=st.characters(), max_size=20))
def test_any_string_is_shown(text):
    names.shown(text).encode('utf-8')
    names.cell(text).encode('utf-8')


@pytest.mark.parametrize('start', ['=', '+', '-', '@'])
def test_cells_are_not_computed(start):
    assert names.cell(f'{start}1+1') == f"'{start}1+1"
    assert names.cell('plain') == 'plain'


def test_names_alike():
    assert names.alike('Straße') == names.alike('STRASSE')
    assert names.alike('Bä') == names.alike('ba\u0308')
    assert names.alike('a') != names.alike('b')


def test_messages_are_one_line_of_valid_text():
    error = DataError(f'{os.fsdecode(bytes([0xE9]))} and\nmore')
    assert str(error) == '\\xe9 and\\nmore'
