"""A front end made of messages: sends what explorer.js sends, and keeps what it would get."""

import json

import numpy as np

KINDS = {"u8": "u1", "i32": "<i4", "f32": "<f4"}


class FrontEnd:
    def __init__(self, explorer):
        self.explorer, self.got, self.number = explorer, [], 0
        explorer.send = lambda content, buffers=None: self.got.append((content, buffers or []))

    def ask(self, op, **more):
        """All answers to one request; each has its `req`, is JSON, and below a megabyte."""
        self.number += 1
        before, request = len(self.got), f"view-{self.number}"
        message = {"run": self.explorer._session.number, **more, "op": op, "req": request}
        self.explorer._receive(self.explorer, json.loads(json.dumps(message)), [])
        answers = self.got[before:]
        for content, buffers in answers:
            assert content["req"] == request
            size = len(json.dumps(content, allow_nan=False).encode()) + sum(map(len, buffers))
            assert size <= 1_000_000
        return answers

    def one(self, op, expect=None, **more):
        """The one answer to a request, which must be of the expected kind."""
        ((content, buffers),) = self.ask(op, **more)
        assert content["op"] == (expect or op), content
        return content, buffers

    def error(self, op, **more):
        return self.one(op, "error", **more)[0]["text"]


def array(buffer, kind, *shape):
    return np.frombuffer(buffer, KINDS[kind]).reshape(shape)
