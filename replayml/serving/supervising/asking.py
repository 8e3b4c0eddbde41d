"""Whether a worker answers: each is asked once, when it has loaded, and accepts no connection before.

Invariants:
    * It is asked by a request, as anybody's, and has to answer as the version that it was started for.
    * Nobody waits for its answer: what came of it is looked at when there is something.
"""

from __future__ import annotations

import selectors
import socket

from replayml.serving.supervising.process import Worker
from replayml.serving.worker.desk import send

__all__ = ["Question", "Questions"]

_QUESTION = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_LONGEST_ANSWER = 65536


class Question:
    """A request by which the supervisor finds out whether a worker answers, and which version.

    Args:
        worker: The worker, which has loaded.

    Attributes:
        worker: The worker.
        socket: Where its answer comes.

    Raises:
        OSError: When it cannot be asked.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.socket, far_end = socket.socketpair()
        self.socket.setblocking(False)
        self._answer = b""
        try:
            with far_end:
                send(worker.channel, {"do": "ask"}, [far_end.fileno()])
            self.socket.send(_QUESTION)
        except BaseException:
            self.socket.close()
            raise

    def look(self) -> str | None:
        """Take what came; return None as long as there is more to come, and then what is wrong, or an empty text."""
        try:
            data = self.socket.recv(_LONGEST_ANSWER)
        except BlockingIOError:
            return None
        except OSError as error:
            return f"it did not answer: {error}"
        self._answer += data
        if data and len(self._answer) < _LONGEST_ANSWER:
            return None
        head = self._answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
        label = b"x-model-version: %d" % self.worker.version.spec.version
        if not head[0].startswith(b"http/1.1 200 ") or label not in head:
            return f"it answered {self._answer[:200].decode('latin-1')!a}"
        return ""


class Questions:
    """The questions that are not answered yet.

    Args:
        selector: Tells when there is something to look at.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._open: dict[Worker, Question] = {}

    def __contains__(self, worker: object) -> bool:
        return worker in self._open

    def ask(self, worker: Worker) -> None:
        """Ask a worker; one that cannot be asked is at fault."""
        try:
            question = self._open[worker] = Question(worker)
        except OSError:
            worker.kill()
            return
        self._selector.register(question.socket, selectors.EVENT_READ, question)

    def look(self, question: Question) -> str | None:
        """Take what came; return None as long as there is more to come, and then what is wrong, or an empty text."""
        if self._open.get(question.worker) is not question:
            return None
        wrong = question.look()
        if wrong is not None:
            self.drop(question.worker)
        return wrong

    def drop(self, worker: Worker) -> None:
        """Want no answer any more."""
        question = self._open.pop(worker, None)
        if question is not None:
            self._selector.unregister(question.socket)
            question.socket.close()

    def close_all(self) -> None:
        """Close all of them, whatever the selector knows of them."""
        while self._open:
            self._open.popitem()[1].socket.close()
