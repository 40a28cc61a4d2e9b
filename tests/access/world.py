"""A running suite with people in it: who owns things, who does not, whose identity is no good any more or never was."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx2
import jwt
import psycopg
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass

from tests.access.contract import Rpc, all_rpcs
from tests.access.doors import GrpcDoor
from tests.e2e.harness import Suite, database_of
from tests.issuer import Metadata

AUTH, CHAT, MEMORY, SMS = "parley.auth.v1", "parley.chat.v1", "parley.memory.v1", "parley.sms.v1"
PASSWORD = "the owner's own {}"
RPCS = all_rpcs()
# Which services call which; the first that the suite knows.
CALLERS = {"auth": ("chat",), "memory": ("chat",), "chat": ("sms",), "sms": ("chat",)}


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def new_word() -> str:
    return f"w{uuid.uuid4().hex[:16]}"


@dataclass
class Person:
    """Somebody with an account, and words that only their things hold."""

    id: str
    username: str
    password: str
    token: str
    marker: str = field(default_factory=new_word)

    @property
    def headers(self) -> Metadata:
        return bearer(self.token)

    @property
    def session(self) -> str:
        return str(jwt.decode(self.token, options={"verify_signature": False})["sid"])


def _seconds_left(token: str) -> float:
    return float(jwt.decode(token, options={"verify_signature": False})["exp"] - time.time())


class World:
    """The suite, its doors, and everybody who tries them."""

    def __init__(self, suite: Suite, http: httpx2.AsyncClient) -> None:
        self.suite = suite
        self.http = http
        self.admin: Person
        self.bad: Mapping[str, Callable[[Rpc], Metadata]] = {}
        """Identities that are good for nothing, by what is wrong with them."""
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._tokens: dict[tuple[str, str], str] = {}

    def direct(self, service: str) -> GrpcDoor:
        return GrpcDoor(f"the port of {service}", self._channel(service))

    @property
    def edge(self) -> GrpcDoor:
        return GrpcDoor("gRPC through the edge", self._channel("edge"))

    def _channel(self, name: str) -> grpc.aio.Channel:
        if name not in self._channels:
            self._channels[name] = grpc.aio.insecure_channel(f"127.0.0.1:{self.suite.port(name.upper())}")
        return self._channels[name]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def ask(self, name: str, fields: Mapping[str, Any], headers: Metadata) -> dict[str, Any]:
        """A call that must be answered, straight at its service."""
        rpc = RPCS[name]
        outcome = await self.direct(rpc.service).call(rpc, rpc.message(fields), headers)
        assert outcome.code == "OK", (name, outcome)
        answer = GetMessageClass(rpc.method.output_type).FromString(outcome.said)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    async def register(self) -> Person:
        username = new_word()
        fields = {"username": username, "email": f"{username}@example.com", "password": PASSWORD.format(username)}
        answer = await self.ask(f"{AUTH}.AuthService.Register", fields, ())
        return Person(answer["user"]["id"], username, fields["password"], answer["tokens"]["access_token"])

    async def sign_in(self, person: Person) -> dict[str, Any]:
        fields = {"username": person.username, "password": person.password}
        tokens: dict[str, Any] = (await self.ask(f"{AUTH}.AuthService.Login", fields, ()))["tokens"]
        return tokens

    async def make_admin(self) -> Person:
        person = await self.register()
        async with await psycopg.AsyncConnection.connect(
            database_of(self.suite.data, "auth"), autocommit=True
        ) as connection:
            await connection.execute("update users set is_admin = true where id = %s", (person.id,))
        person.token = (await self.sign_in(person))["access_token"]
        return person

    async def caller_of(self, service: str) -> str | None:
        """A service that calls this one; None where none does."""
        return next((one for one in CALLERS[service] if (self.suite.data / "credentials" / one).exists()), None)

    def credential(self, workload: str) -> str:
        return (self.suite.data / "credentials" / workload).read_text().strip()

    async def service_token(self, workload: str, audience: str) -> str:
        known = self._tokens.get((workload, audience))
        if known is None or _seconds_left(known) < 60:
            fields = {"workload": workload, "credential": self.credential(workload), "audience": audience}
            answer = await self.ask(f"{AUTH}.TokenService.IssueServiceToken", fields, ())
            self._tokens[workload, audience] = answer["token"]
        return self._tokens[workload, audience]

    async def as_service(self, workload: str, audience: str, user: Person | None = None) -> Metadata:
        token = await self.service_token(workload, audience)
        headers: Metadata = (("x-parley-service-authorization", f"Bearer {token}"),)
        return headers if user is None else (*headers, *bearer(await self.on_behalf(workload, audience, user)))

    async def on_behalf(self, workload: str, audience: str, user: Person) -> str:
        headers = await self.as_service(workload, "auth")
        fields = {"user_id": user.id, "audience": audience}
        return str((await self.ask(f"{AUTH}.TokenService.ExchangeForUser", fields, headers))["token"])

    async def forgeries(self, person: Person) -> dict[str, Metadata]:
        """A person's own token, signed anew by whoever has no key of ours."""
        [key] = [one for one in (await self.http.get("/.well-known/jwks.json")).json()["keys"]
                 if one["kid"] == jwt.get_unverified_header(person.token)["kid"]]  # fmt: skip
        claims = jwt.decode(person.token, options={"verify_signature": False}) | {"roles": ["user", "admin"]}
        raw = base64.urlsafe_b64decode(key["x"] + "=")
        pem = jwt.PyJWK(key).key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        header, _, signature = person.token.split(".")
        other = Ed25519PrivateKey.generate()
        forged = {
            "alg none": f"{_part({'alg': 'none', 'kid': key['kid'], 'typ': 'JWT'})}.{_part(claims)}.",
            "HS256 with the public key": _hs256(claims, raw, key["kid"]),
            "HS256 with the public key as PEM": _hs256(claims, pem, key["kid"]),
            "HS256 with the public key as text": _hs256(claims, key["x"].encode(), key["kid"]),
            "another key under our key id": jwt.encode(claims, other, algorithm="EdDSA", headers={"kid": key["kid"]}),
            "another key in the header": jwt.encode(
                claims, other, algorithm="EdDSA",
                headers={"kid": "mine", "jwk": _jwk(other)},
            ),
            "changed claims": f"{header}.{_part(claims)}.{signature}",
            "no token at all": "rubbish",
        }  # fmt: skip
        return {name: bearer(token) for name, token in forged.items()}


def _jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode()}


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _hs256(claims: object, secret: bytes, key_id: str) -> str:
    """By hand, since no library signs with a public key."""
    signed = f"{_part({'alg': 'HS256', 'kid': key_id, 'typ': 'JWT'})}.{_part(claims)}"
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


class Things:
    """What a person has, made when it is first asked for; the rest of what requests hold is made anew each time."""

    def __init__(self, world: World, owner: Person, stranger: Person) -> None:
        self._world = world
        self._owner = owner
        self._stranger = stranger
        self._made: dict[str, str] = {}

    async def value(self, name: str) -> str:
        if name in self._made:
            return self._made[name]
        owner = self._owner
        always: dict[str, Callable[[], str]] = {"new": new_word, "uuid": lambda: str(uuid.uuid4())}
        if name in always:
            return always[name]()
        if name == "refresh_token":
            return str((await self._world.sign_in(owner))["refresh_token"])
        plain = {
            "owner": owner.id, "username": owner.username, "password": owner.password, "session": owner.session,
            "marker": owner.marker, "stranger": self._stranger.id, "phone": f"+1415555{uuid.uuid4().int % 10_000:04}",
        }  # fmt: skip
        if name in plain:
            return plain[name]
        if name == "credential":
            return self._world.credential("chat")
        await self._make(name)
        return self._made[name]

    async def _make(self, name: str) -> None:
        makers: dict[str, Callable[[], Awaitable[dict[str, str]]]] = {
            **dict.fromkeys(("conversation", "message", "reply", "generation"), self._turn),
            "task": self._task,
            "memory": self._memory,
            "mcp_server": self._mcp_server,
            "call": self._call,
            "text_message": self._text_message,
        }
        assert name in makers, f"tests/access/world.py does not know how to make {{{name}}}: add it to Things"
        self._made |= await makers[name]()

    async def _turn(self) -> dict[str, str]:
        said = {"message": f"Tell me of {self._owner.marker}"}
        answer = await self._world.ask(f"{CHAT}.ChatService.CreateCompletion", said, self._owner.headers)
        return {
            "conversation": answer["conversation_id"], "generation": answer["generation_id"],
            "message": answer["user_message"]["id"], "reply": answer["message"]["id"],
        }  # fmt: skip

    async def _task(self) -> dict[str, str]:
        fields = {"title": f"Do {self._owner.marker}"}
        return {"task": (await self._world.ask(f"{CHAT}.TaskService.CreateTask", fields, self._owner.headers))["id"]}

    async def _memory(self) -> dict[str, str]:
        fields = {"text": f"The user likes {self._owner.marker}."}
        answer = await self._world.ask(f"{MEMORY}.MemoryService.AddMemory", fields, self._owner.headers)
        return {"memory": answer["id"]}

    async def _mcp_server(self) -> dict[str, str]:
        fields = {"label": f"s{self._owner.marker}", "url": "http://127.0.0.1:9/mcp"}
        answer = await self._world.ask(f"{CHAT}.McpServerService.CreateMcpServer", fields, self._owner.headers)
        return {"mcp_server": answer["id"]}

    async def _call(self) -> dict[str, str]:
        fields = {"direction": "inbound", "phone_number": await self.value("phone"), "summary": self._owner.marker}
        return {"call": (await self._world.ask(f"{SMS}.CallService.RecordCall", fields, self._owner.headers))["id"]}

    async def _text_message(self) -> dict[str, str]:
        fields = {"phone_number": await self.value("phone"), "text": f"Of {self._owner.marker}"}
        return {"text_message": (await self._world.ask(f"{SMS}.SmsService.SendMessage", fields, self._owner.headers))["id"]}

    async def filled(self, value: Any) -> Any:
        """A request with the things in it."""
        if isinstance(value, Mapping):
            return {name: await self.filled(one) for name, one in value.items()}
        if isinstance(value, list):
            return [await self.filled(one) for one in value]
        if not isinstance(value, str) or "{" not in value:
            return value
        before, _, rest = value.partition("{")
        name, _, after = rest.partition("}")
        return f"{before}{await self.value(name)}{await self.filled(after)}"

    @property
    def secrets(self) -> list[str]:
        """What nobody else may be shown: the words and the ids of what was made."""
        return [self._owner.marker, self._owner.id, self._owner.username, *self._made.values()]
