"""A server that explains and simulates by rules, so that it is known how good its answers are."""

import json
import re

from faulty_server import _TEXT, Faulty

_SAID = re.compile(r"^The neuron reacts to: (.*)$", re.MULTILINE)


class Knowing(Faulty):
    """Simulates 10 for every token that is a word of the explanation, and 0 for all others.

    It judges as `Faulty` does.

    Attributes:
        writes: answers a chat that asks for an explanation or the like, given its messages' texts
            and its seed.
    """

    def __init__(self, writes, **options):
        super().__init__(**options)
        self.writes = writes

    def _said(self, request, form):
        asked = [message["content"] for message in request["messages"]]
        if _TEXT.search(asked[-1]):
            return super()._said(request, form)  # a judge is asked
        if said := _SAID.search(asked[-1]):
            tokens = json.loads(asked[-1].rpartition("\n\n")[2])
            words = re.findall(r"\w+", said[1])
            values = [{"token": t, "value": 10 * (t.strip() in words)} for t in tokens]
            return json.dumps({"activations": values})
        if form or request.get("logprobs"):
            return super()._said(request, form)  # a probe
        return self.writes(asked, request.get("seed", 0))

    def simulated(self):
        """The explanations from which it was asked to simulate, once for each request."""
        last = (
            body["messages"][-1]["content"] for path, body, _ in self.requests if "chat" in path
        )
        return [said[1] for content in last if (said := _SAID.search(content))]
