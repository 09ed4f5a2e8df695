"""Takes tasks from one of Flower's processes and does them here, in place of the short-lived processes that Flower would start.

This is what Flower's SuperExec does, with one difference: the app of a task is not installed and imported, it is a function of
ours. Written against Flower 1.41 and 1.42; these are its interfaces for executors, not those for apps, so the version is pinned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from weft.sites.flower import environment

environment.ready()

import httpx  # noqa: E402
from flwr.app import ConfigRecord, Message, RecordDict  # noqa: E402
from flwr.app.error import Error  # noqa: E402
from flwr.common.constant import ErrorCode, SubStatus  # noqa: E402
from flwr.common.serde import run_from_proto  # noqa: E402
from flwr.proto.runtime_pb2 import (  # noqa: E402
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType  # noqa: E402
from flwr.supercore.heartbeat import HeartbeatSender  # noqa: E402
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError  # noqa: E402
from flwr.supercore.interceptors import (  # noqa: E402
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import (  # noqa: E402
    ProtobufCall,
    ProtobufClient,
    ProtobufClientInterceptor,
    ProtobufRequestContext,
)
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker  # noqa: E402
from flwr.supercore.run import RunNotRunningException  # noqa: E402
from flwr.supercore.runtime import RuntimeHttpClient  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402
from flwr.superlink.grid import HttpGrid  # noqa: E402
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message  # noqa: E402

from weft.sites.flower import proof  # noqa: E402
from weft.sites.flower.gate import SECRET, word  # noqa: E402

environment.eager()
logging.getLogger("flwr").setLevel(logging.ERROR)  # it tells of every attempt to connect
RECORD, DATA = "weft", "data"
COORDINATOR, SITE = TaskType.SERVER_APP, TaskType.CLIENT_APP
POLL = 0.05  # seconds between two looks for a task
TRIES = 3
TIMEOUT = 30.0  # seconds, as of Flower's own clients
ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
LOST = (httpx.HTTPError, ObjectPushError, ObjectPullError, RunNotRunningException)  # how Flower's calls fail at the other end
Client = TypeVar("Client", bound=ProtobufClient)


@dataclass(frozen=True)
class _Headers:
    """Has every call of a client carry headers."""

    more: dict[str, str]

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self.more)
        return call_next(context)


@dataclass(frozen=True)
class Runtime:
    """One of Flower's processes that is ours: where tasks come from.

    Attributes:
        address: host and port. secret: that opens it. root: certificates that vouch for it, None = it speaks without TLS.
    """

    address: str
    secret: bytes
    root: bytes | None = None

    def header(self) -> dict[str, str]:
        """By what its gate knows our calls."""
        return {SECRET: word(self.secret)}

    def connect(self, kind: type[Client], *interceptors: ProtobufClientInterceptor, component: str) -> Client:
        """One of Flower's clients, for our own calls; they go nowhere but to this machine, whatever proxy others use."""
        made = kind(
            self.url,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), _Headers(self.header()), *interceptors],
            retry_invoker=_soon(),
        )
        made._client.close()
        made._client = self.http()
        return made

    @property
    def url(self) -> str:
        return f"{'http' if self.root is None else 'https'}://{self.address}"

    def http(self, **more: Any) -> httpx.Client:
        return httpx.Client(verify=proof.trusting(self.root), timeout=TIMEOUT, trust_env=False, **more)

    def client(self, *interceptors: ProtobufClientInterceptor, component: str) -> RuntimeHttpClient:
        return self.connect(RuntimeHttpClient, *interceptors, component=component)

    def tokens(self, kind: str, alive: Callable[[], bool]) -> Iterator[tuple[str, int]]:
        """Each task's token and run, as they come, as long as ``alive`` says so.

        Args:
            kind: :data:`COORDINATOR` or :data:`SITE`.
        """
        guard = SuperExecAuthHttpInterceptor(master_secret=self.secret, protected_methods=ACQUIRE)
        client = self.client(guard, component="SuperExec")
        try:
            while alive():
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types={kind}))
                if found.HasField("task") and found.token:
                    yield found.token, found.task.run_id
                else:
                    time.sleep(POLL)
        finally:
            client.close()


def _soon() -> RetryInvoker:
    """Tries a few times: the process at the other end is on this machine, and started again by us when it has ended."""
    invoker = make_simple_http_retry_invoker()
    invoker.max_tries, invoker.should_giveup = TRIES, _for_good
    return invoker


def _for_good(error: Exception) -> bool:
    """Whether to give up: a word of the other end's, unlike silence, does not change. Flower's own rule ends the process."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in (502, 503, 504)


@contextmanager
def heartbeat(client: RuntimeHttpClient) -> Iterator[None]:
    """Tells Flower that the task is being worked on; whoever does not hear it does not end this process."""

    def beat() -> bool:
        try:
            return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except httpx.HTTPError:
            return False

    sender = HeartbeatSender(beat)
    sender.start()
    try:
        yield
    finally:
        sender.stop()


def answer_one(runtime: Runtime, token: str, answer: Callable[[bytes], bytes]) -> str:
    """Do one task of a SuperNode: read its message, answer it, send the answer.

    Args:
        answer: raises nothing: what goes wrong at a site is said there.

    Returns:
        why the answer was not sent, "" if it was.
    """
    client = runtime.client(RuntimeTokenHttpInterceptor(token), component="flwr-clientapp")
    try:
        with heartbeat(client):
            message, context, _, _ = pull_task_input(client)
            question = data_of(message)
            if question is None:
                reply = Message(
                    Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason="This is no question."), reply_to=message
                )
            else:
                reply = Message(record(answer(question)), reply_to=message)
            push_message(client, reply, context)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))
        return ""
    except LOST as e:
        return " ".join(str(e).split())[:200] or type(e).__name__
    finally:
        client.close()


@contextmanager
def grid(runtime: Runtime, token: str) -> Iterator[HttpGrid]:
    """Be the ServerApp of one task of a SuperLink."""
    found = HttpGrid(runtime.address, insecure=runtime.root is None, root_certificates=runtime.root, token=token)
    found._client = runtime.client(
        RuntimeTokenHttpInterceptor(token), component="flwr-serverapp"
    )  # its own would lack the secret
    status = SubStatus.FAILED
    try:
        client = found._runtime_client  # Flower's own ServerApp process takes it from there too
        with heartbeat(client):
            task = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
            TaskIdentity.node_id = task.context.node_id
            found.set_run(run_from_proto(task.run))
            yield found
            status = SubStatus.COMPLETED
    finally:
        try:
            found._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        finally:
            found.close()


def record(data: bytes) -> RecordDict:
    """Bytes as Flower's content."""
    return RecordDict({RECORD: ConfigRecord({DATA: data})})


def data_of(message: Message) -> bytes | None:
    """The bytes in a message, None if it holds none."""
    if not message.has_content():
        return None
    found = message.content.get(RECORD)
    data = found.get(DATA) if isinstance(found, ConfigRecord) else None
    return data if isinstance(data, bytes) else None
