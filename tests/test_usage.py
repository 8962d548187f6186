import pytest

from rlm.errors import InputError
from rlm.usage import TokenUsage, load_prices

A_MILLION = TokenUsage(input_tokens=1_000_000, cached_input_tokens=500_000, output_tokens=1_000_000)


def test_the_table_of_the_package_prices_openais_models():
    assert load_prices(None).cost_usd("gpt-5-nano", A_MILLION) == pytest.approx(0.025 + 0.0025 + 0.4)
    assert load_prices("https://api.openai.com/v1").cost_usd("gpt-5", A_MILLION) is not None


def test_the_same_name_elsewhere_has_no_known_price():
    assert load_prices("http://127.0.0.1:8000/v1").cost_usd("gpt-5", A_MILLION) is None


def test_overrides_replace_and_add():
    text = '["llm.example"]\n"a/b" = { input = 1, output = 2 }\n["api.openai.com"]\ngpt-5 = {input=0,output=0}'
    assert load_prices("https://llm.example/v1", text).cost_usd("a/b", A_MILLION) == 3
    assert load_prices(None, text).cost_usd("gpt-5", A_MILLION) == 0
    assert load_prices(None, text).cost_usd("gpt-5-nano", A_MILLION) is not None


@pytest.mark.parametrize("text", ["not toml", '["api.openai.com"]\nx = 1', '["api.openai.com"]\nx = {input = 1}'])
def test_overrides_of_another_form_are_refused(text):
    with pytest.raises(InputError, match="cannot use the price list"):
        load_prices(None, text)
