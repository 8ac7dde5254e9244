"""Colab's own errors."""


class Error(Exception):
    pass


class MessageError(Exception):
    pass
