"""How a refused request is told so: `{"error": "..."}`, and in OpenAI's shape where its clients ask."""

from __future__ import annotations

from typing import Any

__all__ = ["FAILED", "HANG_UP", "failure", "openai_failure"]

HANG_UP = 499
"""status, in the counts alone, of a request whose client has gone"""
FAILED = "the server has made a mistake, and noted it in its log"
_OPENAI = ("/v1/chat/", "/v1/models/")
_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded", 504: "timeout"}


def failure(path: str, status: int, message: str) -> dict[str, Any]:
    """The body of a refusal: `schemas.Failure`, or OpenAI's where the path is one of its own."""
    return openai_failure(status, message) if path.startswith(_OPENAI) else {"error": message}


def openai_failure(status: int, message: str) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    kind = "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}}
