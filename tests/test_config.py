import pytest

from rlm import Limits, Provider, ReplLimits, RunConfig
from rlm.errors import InputError


@pytest.mark.parametrize(
    "options",
    [
        {"max_iterations": 0},
        {"pool_size": 0},
        {"sub_llm_chars": 0},
        {"model": " "},
        {"request_timeout_s": 0},
        {"request_timeout_s": float("nan")},
        {"request_timeout_s": float("inf")},
        {"repl": ReplLimits(cell_timeout_s=0)},
    ],
)
def test_a_configuration_that_cannot_work_is_refused_when_it_is_made(options):
    with pytest.raises(InputError):
        RunConfig(**options)


@pytest.mark.parametrize("name", ["max_calls", "max_tokens", "max_usd", "timeout_s", "max_depth"])
def test_a_limit_below_zero_is_refused_by_its_name(name):
    with pytest.raises(InputError, match=f"{name} must not be negative: -1"):
        Limits(**{name: -1})


def test_the_provider_is_read_from_the_environment():
    provider = Provider.from_environment({"OPENAI_API_KEY": " sk-1 ", "OPENAI_BASE_URL": "https://llm.example/v1"})
    assert (provider.api_key, provider.base_url) == ("sk-1", "https://llm.example/v1")
    assert Provider.from_environment(provider.environment()) == provider


def test_a_server_of_ones_own_wants_no_key():
    assert Provider.from_environment({"OPENAI_BASE_URL": "http://localhost:1/v1"}).api_key == "none"


@pytest.mark.parametrize("environment", [{}, {"OPENAI_API_KEY": " "}, {"OPENAI_BASE_URL": "localhost:80"}])
def test_an_environment_that_names_no_provider_is_refused(environment):
    with pytest.raises(InputError):
        Provider.from_environment(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENAI_API_KEY": "sk-secret-ключ"},
        {"OPENAI_API_KEY": "sk-secret\nmore"},
        {"OPENAI_BASE_URL": "sk-secret"},
        {"OPENAI_BASE_URL": "http://me:sk-secret@llm.example/v1"},
        {"OPENAI_BASE_URL": "http://sk-secret:port/v1"},
        {"OPENAI_BASE_URL": "http://[sk-secret/v1"},
    ],
)
def test_what_cannot_be_a_key_or_a_url_is_refused_unsaid(environment):
    with pytest.raises(InputError) as raised:
        Provider.from_environment(environment)
    assert "secret" not in str(raised.value)


def test_a_provider_does_not_show_its_key():
    assert "sk-1" not in repr(Provider(api_key="sk-1"))
