"""A small OpenAI-compatible server on the loopback, for tests of what can go wrong."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Faulty:
    """An OpenAI-compatible server that knows the model `m`, and can be told what to do wrong."""

    def __init__(self):
        self.token = r"\t|\n|\d|[^\t\n\d]+"
        self.bos = ""
        self.most_logprobs = 20
        self.status, self.body = 200, {}
        self.echoes = True
        self.listed = {"3": -1.0, "6": -1.0, "unknown": -0.5}
        self.requests = []
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                faulty.requests.append((self.path, request, self.headers["Authorization"]))
                self.reply(*faulty.answer(self.path, request))

            def reply(self, status, body):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, path, request):
        if self.status != 200:
            return self.status, self.body
        if request["model"] != "m":
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist."}}
        if path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": "rivers"}
            return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        if request["logprobs"] > self.most_logprobs:
            return 400, {"error": {"message": f"logprobs is at most {self.most_logprobs}"}}
        choice = {"index": 0, "text": request["prompt"], "finish_reason": "length"}
        if self.echoes:
            tokens = [self.bos] * bool(self.bos) + re.findall(self.token, request["prompt"])
            offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
            listed = [None] + [self.listed] * (len(tokens) - 1)
            choice["logprobs"] = {
                "tokens": tokens,
                "text_offset": offsets,
                "top_logprobs": listed,
                "token_logprobs": [None] * len(tokens),
            }
        return 200, {"choices": [choice]}
