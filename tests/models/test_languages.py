"""Language tags, names, scripts, fallback chains."""

import pytest

from kauli.models.errors import UsageError
from kauli.models.languages import (
    check_tag,
    display_name,
    fallback_chain,
    likely_tag,
    nfc,
    own_name,
    runs_right_to_left,
    script_share,
    scripts,
)


@pytest.mark.parametrize(
    ("given", "standard"),
    [
        ("sw", "sw"),
        ("swh", "sw"),
        ("swh_Latn", "sw"),
        ("SW", "sw"),
        ("kir_Cyrl", "ky"),
        ("gaz", "om"),
        ("be-tarask", "be-tarask"),
        ("sr_latn", "sr-Latn"),
        ("zh-hant", "zh-Hant"),
        (" am ", "am"),
    ],
)
def test_tags_get_their_shortest_standard_form(given: str, standard: str) -> None:
    assert check_tag(given) == standard


@pytest.mark.parametrize("wrong", ["", "xx", "zzz", "und", "en_XX_yy!", "a" * 50, "no such", "../sw"])
def test_unknown_tags_are_errors_of_use(wrong: str) -> None:
    with pytest.raises(UsageError, match="unknown language"):
        check_tag(wrong)


def test_an_english_name_is_answered_with_the_tag() -> None:
    with pytest.raises(UsageError, match="Did you mean 'sw'"):
        check_tag("swahili")


def test_names_and_scripts() -> None:
    assert display_name("sw") == "Swahili"
    assert display_name("sr-Latn") == "Serbian (Latin)"
    assert scripts("be") == {"Cyrillic"}
    assert scripts("am") == {"Ethiopic"}
    assert scripts("bn") == {"Bengali"}
    assert scripts("ja") == {"Han", "Hiragana", "Katakana"}


def test_languages_call_themselves_and_run_their_way() -> None:
    assert [own_name(tag) for tag in ("sw", "am", "ar", "be")] == ["Kiswahili", "አማርኛ", "العربية", "беларуская"]
    assert [tag for tag in ("sw", "ar", "am", "ckb", "pa", "pa-Arab", "he") if runs_right_to_left(tag)] == [
        "ar", "ckb", "pa-Arab", "he",
    ]  # fmt: skip


def test_the_fallback_chain_goes_from_narrow_to_wide() -> None:
    assert fallback_chain("be-tarask") == ["be-tarask", "be"]
    assert fallback_chain("zh-Hant-HK") == ["zh-Hant-HK", "zh-Hant", "zh"]
    assert fallback_chain("sw") == ["sw"]


def test_likely_tags_drop_what_the_rest_implies() -> None:
    assert likely_tag("ha-NG") == "ha"
    assert likely_tag("ckb-Latn") == "ckb-Latn"
    assert likely_tag("pt-PT") == "pt-PT"


def test_script_share_counts_letters_only() -> None:
    assert script_share("слон 100 %", "be") == 1.0
    assert script_share("слон abcd", "be") == 0.5
    assert script_share("123", "be") == 1.0
    assert script_share("ዝሆን።", "am") == 1.0
    assert script_share("ọkùnrin", "yo") == 1.0


def test_nfc_composes() -> None:
    assert nfc("e\u0301") == "\u00e9"
