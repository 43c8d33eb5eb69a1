"""What is said to a client. Imports nothing."""


class RequestError(ValueError):
    """A request that the model cannot answer; the message is one sentence with what was found and what to send."""
