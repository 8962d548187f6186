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
        {"prompts": ""},
        {"pool_size": 65},
        {"max_iterations": 10**9},
        {"max_children": 0},
        {"max_iterations": 2.5},
        {"pool_size": True},
    ],
)
def test_a_configuration_that_cannot_work_is_refused_when_it_is_made(options):
    with pytest.raises(InputError):
        RunConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"cell_timeout_s": 0},
        {"cell_timeout_s": float("nan")},
        {"max_output_chars": 10**9},
        {"memory_mib": 0},
        {"interrupt_grace_s": float("inf")},
    ],
)
def test_limits_of_a_repl_that_cannot_work_are_refused(options):
    with pytest.raises(InputError):
        ReplLimits(**options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", 10**400])
@pytest.mark.parametrize("name", ["max_calls", "max_tokens", "max_usd", "timeout_s", "max_depth"])
def test_a_limit_that_is_no_number_is_refused_by_its_name(name, value):
    with pytest.raises(InputError, match=f"{name} must be"):
        Limits(**{name: value})


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


def test_a_provider_does_not_show_its_key():
    assert "sk-1" not in repr(Provider(api_key="sk-1"))


@pytest.mark.parametrize(
    ("base_url", "host"), [(None, "api.openai.com"), ("https://models.example:8443/v1", "models.example:8443")]
)
def test_a_provider_knows_the_host_it_is_asked_at(base_url, host):
    assert Provider(api_key="k", base_url=base_url).host == host
