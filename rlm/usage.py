"""Tokens and what they cost.

Prices come from `prices.toml`: USD for a million tokens, by provider host and model. A price that is not there
is unknown, and a sum with an unknown part is unknown too: never zero.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rlm.errors import InputError

OPENAI_HOST = "api.openai.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of one call or of many. `cached_input_tokens` are part of `input_tokens`."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            input_tokens=self.input_tokens + other.input_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD for a million tokens of each kind."""

    input: float
    output: float
    cached_input: float

    def cost_usd(self, usage: TokenUsage) -> float:
        """What `usage` costs at this price."""
        fresh = usage.input_tokens - usage.cached_input_tokens
        return (
            fresh * self.input + usage.cached_input_tokens * self.cached_input + usage.output_tokens * self.output
        ) / 1e6


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices by model name, for one provider."""

    by_model: Mapping[str, Price] = field(default_factory=dict)

    def cost_usd(self, model: str, usage: TokenUsage) -> float | None:
        """What `usage` of `model` costs, or None where the price is not known."""
        price = self.by_model.get(model)
        return None if price is None else price.cost_usd(usage)


def load_prices(base_url: str | None, overrides: str = "") -> PriceList:
    """The price list for the provider at `base_url` (None is OpenAI); `overrides` is TOML in the form of prices.toml.

    Raises: InputError when the overrides are not of that form.
    """
    host = OPENAI_HOST if base_url is None else urlsplit(base_url).hostname or ""
    by_model: dict[str, Price] = {}
    for text in (Path(__file__).with_name("prices.toml").read_text("utf-8"), overrides):
        try:
            by_model |= {model: _price(row) for model, row in tomllib.loads(text).get(host, {}).items()}
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise InputError(f"cannot use the price list: {exc!r}; its form is that of rlm/prices.toml") from exc
    return PriceList(by_model)


def _price(row: Mapping[str, float]) -> Price:
    return Price(
        input=float(row["input"]),
        output=float(row["output"]),
        cached_input=float(row.get("cached_input", row["input"])),
    )
