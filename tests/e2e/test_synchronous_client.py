"""A synchronous gRPC client of another service of the house: pytest-grpc's stub, on the edge's port and at the service."""

import uuid
from typing import Any, cast

import grpc
import pytest

from parley.auth.v1 import auth_pb2, auth_pb2_grpc
from parley.chat.v1 import chat_pb2, chat_pb2_grpc
from tests.e2e.harness import PASSWORD, Suite


@pytest.fixture(scope="module", params=["EDGE", "AUTH"])
def grpc_addr(request: pytest.FixtureRequest, suite: Suite) -> str:
    """Instead of the plugin's free port: the running suite's."""
    return f"127.0.0.1:{suite.port(request.param)}"


@pytest.fixture(scope="module")
def grpc_server() -> None:
    """Instead of the plugin's server in this process: there is a real one."""


@pytest.fixture(scope="module")
def grpc_stub_cls() -> type[auth_pb2_grpc.AuthServiceStub]:
    return auth_pb2_grpc.AuthServiceStub


@pytest.fixture
def registered(grpc_stub: Any) -> auth_pb2.RegisterResponse:
    name = f"s{uuid.uuid4().hex[:12]}"
    request = auth_pb2.RegisterRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
    answer: auth_pb2.RegisterResponse = grpc_stub.Register(request, timeout=30)
    return answer


def test_it_registers_and_asks_who_it_is(grpc_stub: Any, registered: auth_pb2.RegisterResponse) -> None:
    metadata = (("authorization", f"Bearer {registered.tokens.access_token}"),)
    assert grpc_stub.GetMe(auth_pb2.GetMeRequest(), metadata=metadata, timeout=30) == registered.user


def test_it_is_refused_without_identity(grpc_stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        grpc_stub.GetMe(auth_pb2.GetMeRequest(), timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_it_reads_a_stream(suite: Suite, registered: auth_pb2.RegisterResponse) -> None:
    metadata = (("authorization", f"Bearer {registered.tokens.access_token}"),)
    with grpc.insecure_channel(f"127.0.0.1:{suite.port('EDGE')}") as channel:
        # The generated types know the asynchronous kind of channel only.
        stub: Any = chat_pb2_grpc.ChatServiceStub(cast("Any", channel))
        events = list(stub.StreamCompletion(chat_pb2.CompletionRequest(message="hello"), metadata=metadata, timeout=30))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].WhichOneof("event") == "completed"
