"""Calls of the adapters as their tools make them, and a reward server that refuses tokens or prompts."""

import asyncio
from contextlib import AbstractContextManager
from typing import Any

import grpc
import httpx

from reward_server.adapters.http import Gateway, create_app
from reward_server.adapters.openrlhf import PromptForm
from reward_server.client import AsyncRewardClient, RewardOptions
from reward_server.pb import reward_pb2 as pb
from tests.scripted_server import QUICK, ScriptedService, scripted_server

UNKNOWN_ROLE = "unknown role 'bot'; the roles are system, user and assistant"
CONTROL_TOKEN = "the assistant message holds the control token '<|user|>'; take it out of the text"


def messages(role: str, content: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


def group_sizes(service: ScriptedService) -> list[int]:
    return sorted(len(request.completions) for request in service.requests)


def post_at_once(address: str, bodies: list[tuple[str, Any]], **settings: Any) -> list[httpx.Response]:
    """Post all bodies to a gateway at the same time, and return its responses in order."""

    async def post(http: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return await http.post(path, content=body)
        return await http.post(path, json=body)

    async def post_all() -> list[httpx.Response]:
        async with AsyncRewardClient(address, timeout_s=settings.pop("timeout_s", 5), retries=QUICK) as client:
            options = settings.pop("options", RewardOptions())
            app = create_app(Gateway(client, options, settings.pop("form", PromptForm()), **settings))
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                return await asyncio.gather(*(post(http, path, body) for path, body in bodies))

    return asyncio.run(post_all())


def sample(prompt: str, completion: str, label: Any = "") -> tuple[str, Any]:
    """Return one sample as OpenRLHF posts it."""
    return "/get_reward", {"query": [prompt + completion], "prompts": [prompt], "labels": [label]}


class RefusingService(ScriptedService):
    """Refuses every token, or with a `prompt_error` every prompt; its health is SERVING anyway."""

    prompt_error = ""

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        if not self.prompt_error:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown token")
        return super().GetServerInfo(request, context)

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        status = pb.STATUS_INVALID_CONVERSATION
        if self.prompt_error == CONTROL_TOKEN:
            status = pb.STATUS_CONTROL_TOKEN
        score = pb.CompletionScore(status=status, error=self.prompt_error)
        return pb.ScoreResponse(
            completions=[score] * len(request.completions), definition=self.definition(request.options)
        )


def refusing_server(prompt_error: str = "") -> AbstractContextManager[str]:
    service = RefusingService()
    service.prompt_error = prompt_error
    return scripted_server(service)


def verl_call(compute: Any, completion: str, prompt: Any = "What?", **more: Any) -> Any:
    """Call a compute_score as verl's reward managers do."""
    extra_info = {"index": 3, "prompt": prompt, "num_turns": 2}
    return compute(data_source="lab", solution_str=completion, ground_truth="5", extra_info=extra_info, **more)
